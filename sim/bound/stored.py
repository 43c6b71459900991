"""Bound of a device whose experts live in the host's memory: a linear programme over how their uses are served.

A use is one expert of a rank that some token of a step visits. Slots spare at most the hits of Belady's rule; every
other use is copied or computed by the host, as far as the rule of misses does either. The programme divides them so
that the busiest resource has least to do, whatever the rules of eviction and prefetch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from hwmodels import host as host_laws
from hwmodels.moe import expert_shape
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.offload_specs import OffloadSpec
from scenarios.schedule_specs import ScheduleSpec
from sim.bound.demand import Visits
from sim.bound.resources import Kind, Resource, experts_floor_s, resources
from sim.offload.offloaded import requests_of
from sim.offload.prices import tiers_of
from sim.offload.replay import replay
from sim.offload.slots import check_offload
from sim.offload.wanted import wanted_of
from sim.setting import Setting

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """Uses of experts in a mean step, of all ranks and layers.

    tokens   int64[kind]: the numbers of tokens that uses have; counts: float64[kind], uses with so many.
    hosted   float64[kind]: uses that may be left to the host.
    missed   uses that no rule can serve from the slots; copies: whether any may be copied.
    cells    layers and ranks with any use; least: the fewest uses that one of them has in any step.
    """

    tokens: NDArray[np.int64]
    counts: Vector
    hosted: Vector
    missed: float
    cells: float
    least: int
    copies: bool = True

    @property
    def total(self) -> float:
        """All uses."""
        return float(self.counts.sum())

    @property
    def routed(self) -> float:
        """Tokens times their experts."""
        return float(self.counts @ self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One inequality: fixed + copied x per_copy + hosted @ per_hosted <= capacity x time of a step."""

    resource: Resource
    fixed: float
    per_copy: float
    per_hosted: Vector

    def asked(self, copied: float, hosted: Vector) -> float:
        """What a step asks of the resource."""
        return self.fixed + self.per_copy * copied + float(self.per_hosted @ hosted)


def uses_of(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec, spec: OffloadSpec
) -> Uses:
    """Uses of the setting's steps, and how many Belady's rule misses. Raises ScenarioError as a simulation does."""
    check_offload(setting, placement, schedule, spec)
    wanted = wanted_of(setting, placement, reduction)
    copies = spec.miss != "host" or spec.prefetch is not None
    best = {"evict": "belady" if copies else "static", "prefetch": None}  # without copies slots stay as they are
    missed = replay(requests_of(setting, placement, wanted, spec.model_copy(update=best))).loaded
    may_leave = wanted.used if copies else missed.reshape(wanted.used.shape)
    n_steps, of_cell = len(wanted.tokens), wanted.used.sum(axis=-1)
    by_tokens = np.bincount(wanted.tokens[wanted.used])
    tokens = np.flatnonzero(by_tokens)
    hosted = np.bincount(wanted.tokens[may_leave], minlength=len(by_tokens)) * (spec.miss != "load")
    return Uses(
        tokens=tokens,
        counts=by_tokens[tokens] / n_steps,
        hosted=hosted[tokens] / n_steps,
        missed=float(missed.sum()) / n_steps,
        cells=np.count_nonzero(of_cell) / n_steps,
        least=int(of_cell[of_cell > 0].min()),
        copies=copies,
    )


def stored_resources(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    schedule: ScheduleSpec,
    spec: OffloadSpec,
    uses: Uses,
) -> tuple[Resource, ...]:
    """The rows of a setting at the best division of `uses`; the smallest is the bound, `weight` says who binds."""
    visits = Visits(routed=uses.routed, active=uses.total)
    own = resources(setting, placement, reduction, schedule.exchange, visits)
    rows = [*_own_rows(setting, placement, own, uses), *_host_rows(setting, spec, uses)]
    best = divided(rows, uses)
    n_tokens = float(setting.workload.tokens_per_device * setting.cluster.n_devices)
    found: dict[str, Resource] = {}
    for row, weight in zip(rows, best.weights, strict=True):
        demand = row.asked(best.copied, best.hosted) / n_tokens
        before = found.get(row.resource.name)
        found[row.resource.name] = replace(
            row.resource,
            demand_per_token=demand if before is None else max(demand, before.demand_per_token),
            weight=weight if before is None or before.weight is None else weight + before.weight,
        )
    return tuple(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """copied, hosted: uses in a mean step; weights: float64[row], relative change of the bound by each capacity."""

    copied: float
    hosted: Vector
    weights: Vector


def divided(rows: Sequence[Row], uses: Uses) -> Divided:
    """The division of least time. Variables: time of a step, copies, and hosted uses of every number of tokens.

    Rows are scaled by their capacities, and time by that of all uses copied, so that their dual values add up to 1.
    """
    everything = uses.counts
    scale_s = max(row.asked(uses.missed, 0 * everything) / row.resource.capacity for row in rows)
    scales = np.array([row.resource.capacity * scale_s for row in rows])
    matrix = np.array([[-1.0, row.per_copy / s, *(row.per_hosted / s)] for row, s in zip(rows, scales, strict=True)])
    serve = [0.0, -1.0, *([-1.0] * len(everything))]
    solved = linprog(
        [1.0, 0.0, *([0.0] * len(everything))],
        A_ub=np.vstack([matrix, serve]),
        b_ub=[*(-row.fixed / s for row, s in zip(rows, scales, strict=True)), -uses.missed],
        bounds=[(0, None), (0, uses.total * uses.copies), *((0, count) for count in uses.hosted)],
    )
    if solved.x is None:
        raise ScenarioError(f"the linear programme of the bound failed: {solved.message}")
    return Divided(copied=float(solved.x[1]), hosted=solved.x[2:], weights=-solved.ineqlin.marginals[: len(rows)])


def _own_rows(setting: Setting, placement: Placement, own: Sequence[Resource], uses: Uses) -> Iterator[Row]:
    """Rows of the device and its ports: hosted uses leave the device, copies ask nothing of it.

    Time of its experts is a law f of routed tokens r and uses u, convex and homogeneous beside what a call costs:
    what is left of it after some are hosted is at least f(r, u) less f of those alone, and not less than either part.
    """
    n_tokens = float(setting.workload.tokens_per_device * setting.cluster.n_devices)
    each, model = np.ones(len(uses.counts)), setting.model
    for row in own:
        fixed = row.demand_per_token * n_tokens
        here = replace(row, holds="this plan")
        if row.kind == "links":
            yield Row(resource=here, fixed=fixed, per_copy=0.0, per_hosted=0 * each)
        elif row.name == "multiplication":
            flop: Vector = -2.0 * model.expert_parameters * uses.tokens.astype(np.float64)
            yield Row(resource=here, fixed=fixed, per_copy=0.0, per_hosted=flop)
        elif row.name == "memory bandwidth":
            yield Row(resource=here, fixed=fixed, per_copy=0.0, per_hosted=-model.expert_bytes * each)
        else:
            whole, token_s, use_s, call_s = _floors(setting, placement, uses)
            other = fixed - whole
            saved: Vector = token_s * uses.tokens.astype(np.float64) + use_s + call_s / uses.least
            left = whole - call_s * (_cells(setting, placement) - uses.cells)
            yield Row(resource=here, fixed=other + left, per_copy=0.0, per_hosted=-saved)
            yield Row(
                resource=here,
                fixed=other + token_s * uses.routed,
                per_copy=0.0,
                per_hosted=-token_s * uses.tokens.astype(np.float64),
            )
            yield Row(resource=here, fixed=other + use_s * uses.total, per_copy=0.0, per_hosted=-use_s * each)


def _cells(setting: Setting, placement: Placement) -> int:
    return setting.layout.n_ranks * placement.n_layers


def _floors(setting: Setting, placement: Placement, uses: Uses) -> tuple[float, float, float, float]:
    """Device seconds at least: of all experts of a mean step, of a token, of a use, and of a call of one cell."""

    def floor_s(routed: float, active: float) -> float:
        return experts_floor_s(setting, placement, Visits(routed=routed, active=active))

    calls_s = floor_s(0.0, 0.0)
    token_s = (floor_s(uses.routed, 0.0) - calls_s) / uses.routed
    use_s = (floor_s(0.0, uses.total) - calls_s) / uses.total
    return floor_s(uses.routed, uses.total), token_s, use_s, calls_s / _cells(setting, placement)


def _host_rows(setting: Setting, spec: OffloadSpec, uses: Uses) -> Iterator[Row]:
    """Copy engines, memory and cores of the hosts; devices that share an expert each copy or leave their part of it."""
    cluster, tp = setting.cluster, setting.layout.tp
    tiers = tiers_of(setting, spec.model_copy(update={"miss": "load"}))
    if cluster.host is None:
        raise ScenarioError(f"{cluster.name} has no host")
    each, n_devices = np.ones(len(uses.counts)), float(cluster.n_devices)
    expert_bytes = setting.model.expert_bytes
    expert_s = host_laws.expert_s(uses.tokens, expert_shape(setting.model, tp), tiers.cores, tiers.dram_bytes_per_s)
    yield Row(
        resource=_resource("host link", "links", "s", n_devices, "copies of experts, one after another on each device"),
        fixed=0.0,
        per_copy=tp * tiers.copy_s,
        per_hosted=0 * each,
    )
    dram = cluster.host.dram_bytes_per_s.value * cluster.n_nodes
    yield Row(
        resource=_resource("host memory bandwidth", "hardware", "B", dram, "copied and hosted experts once each"),
        fixed=0.0,
        per_copy=expert_bytes,
        per_hosted=expert_bytes * each,
    )
    yield Row(
        resource=_resource("host cores", "kernels", "s", n_devices, "law of the cores, a share for each device"),
        fixed=0.0,
        per_copy=0.0,
        per_hosted=tp * expert_s,
    )


def _resource(name: str, kind: Kind, unit: str, capacity: float, detail: str) -> Resource:
    return Resource(
        name=name, kind=kind, unit=unit, demand_per_token=0.0, capacity=capacity, holds="this plan", detail=detail
    )
