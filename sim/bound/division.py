"""Bounds by division: a linear programme over uses of experts that leave the device for another resource.

A use is one expert of a rank that some token of a step visits. Uses of so many tokens are alike; what leaves the device
goes to the host's cores, or to units in the memory. A second variable stands for what is decided beside them. The best
division leaves the busiest resource least to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from placement.plan import Placement
from scenarios.errors import ScenarioError
from sim.bound.demand import Visits
from sim.bound.resources import Kind, Resource, experts_floor_s
from sim.setting import Setting

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """Uses of experts in a mean step, of all ranks and layers.

    tokens  int64[kind]: the numbers of tokens that uses have; counts: float64[kind], uses with so many.
    cells   layers and ranks with any use; least: the fewest uses that one of them has in any step.
    """

    tokens: NDArray[np.int64]
    counts: Vector
    cells: float
    least: int

    @property
    def total(self) -> float:
        """All uses."""
        return float(self.counts.sum())

    @property
    def routed(self) -> float:
        """Tokens times their experts."""
        return float(self.counts @ self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Most of the second variable, most uses of every kind that may leave, float64[kind], and the least of all."""

    other: float
    away: Vector
    least: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One inequality: fixed + other x per_other + away @ per_away <= capacity x time of a step."""

    resource: Resource
    fixed: float
    per_other: float
    per_away: Vector

    def asked(self, other: float, away: Vector) -> float:
        """What a step asks of the resource."""
        return self.fixed + self.per_other * other + float(self.per_away @ away)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """The best division of a mean step; weights: float64[row], relative change of the bound by each capacity."""

    other: float
    away: Vector
    weights: Vector


def uses_of_tokens(tokens: NDArray[np.integer], n_steps: int) -> Uses:
    """Uses of int[..., rank, place] tokens of `n_steps` steps."""
    by_tokens = np.bincount(tokens[tokens > 0])
    kinds = np.flatnonzero(by_tokens)
    of_cell = np.count_nonzero(tokens, axis=-1)
    return Uses(
        tokens=kinds,
        counts=by_tokens[kinds] / n_steps,
        cells=np.count_nonzero(of_cell) / n_steps,
        least=int(of_cell[of_cell > 0].min()),
    )


def divided(rows: Sequence[Row], limits: Limits) -> Divided:
    """The division of least time. Variables: time of a step, the second one, and uses of every kind that leave.

    Rows are scaled by their capacities, and time by that of a division, so that their dual values add up to 1.
    """
    none = 0 * limits.away
    scale_s = max(row.asked(limits.least, none) / row.resource.capacity for row in rows)
    scales = np.array([row.resource.capacity * scale_s for row in rows])
    matrix = [[-1.0, row.per_other / s, *(row.per_away / s)] for row, s in zip(rows, scales, strict=True)]
    solved = scipy.optimize.linprog(
        [1.0, 0.0, *none],
        A_ub=np.array([*matrix, [0.0, -1.0, *(none - 1.0)]]),
        b_ub=[*(-row.fixed / s for row, s in zip(rows, scales, strict=True)), -limits.least],
        bounds=[(0, None), (0, limits.other), *((0, most) for most in limits.away)],
    )
    if solved.x is None:
        raise ScenarioError(f"the linear programme of the bound failed: {solved.message}")
    return Divided(other=float(solved.x[1]), away=solved.x[2:], weights=-solved.ineqlin.marginals[: len(rows)])


def divided_resources(setting: Setting, rows: Sequence[Row], limits: Limits) -> tuple[Resource, ...]:
    """Resources at the best division, the least of which is the bound; of several rows of one that which asks most."""
    best = divided(rows, limits)
    n_tokens = float(setting.workload.tokens_per_device * setting.cluster.n_devices)
    found: dict[str, Resource] = {}
    for row, weight in zip(rows, best.weights, strict=True):
        before = found.get(row.resource.name)
        demand, weight = row.asked(best.other, best.away) / n_tokens, float(weight)
        if before is not None:
            demand, weight = max(demand, before.demand_per_token), weight + (before.weight or 0.0)
        found[row.resource.name] = replace(row.resource, demand_per_token=demand, weight=weight)
    return tuple(found.values())


def device_rows(setting: Setting, placement: Placement, own: Sequence[Resource], uses: Uses) -> Iterator[Row]:
    """Rows of the device and its ports, which uses that leave it relieve, and the second variable does not.

    Time of its experts is a law f of routed tokens r and uses u, convex and homogeneous beside what a call costs:
    what is left of it after some leave is at least f(r, u) less f of those alone, and not less than either part.
    """
    n_tokens = float(setting.workload.tokens_per_device * setting.cluster.n_devices)
    each, model = np.ones(len(uses.counts)), setting.model
    for row in own:
        fixed = row.demand_per_token * n_tokens
        here = replace(row, holds="this plan")
        if row.kind == "links":
            yield Row(resource=here, fixed=fixed, per_other=0.0, per_away=0 * each)
        elif row.name == "multiplication":
            flop: Vector = -2.0 * model.expert_parameters * uses.tokens.astype(np.float64)
            yield Row(resource=here, fixed=fixed, per_other=0.0, per_away=flop)
        elif row.name == "memory bandwidth":
            yield Row(resource=here, fixed=fixed, per_other=0.0, per_away=-model.expert_bytes * each)
        else:
            whole, token_s, use_s, call_s = _floors(setting, placement, uses)
            other = fixed - whole
            saved: Vector = token_s * uses.tokens.astype(np.float64) + use_s + call_s / uses.least
            left = whole - call_s * (_cells(setting, placement) - uses.cells)
            yield Row(resource=here, fixed=other + left, per_other=0.0, per_away=-saved)
            yield Row(
                resource=here,
                fixed=other + token_s * uses.routed,
                per_other=0.0,
                per_away=-token_s * uses.tokens.astype(np.float64),
            )
            yield Row(resource=here, fixed=other + use_s * uses.total, per_other=0.0, per_away=-use_s * each)


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


def empty_resource(name: str, kind: Kind, unit: str, capacity: float, detail: str) -> Resource:
    """A resource of which nothing is asked yet."""
    return Resource(
        name=name, kind=kind, unit=unit, demand_per_token=0.0, capacity=capacity, holds="this plan", detail=detail
    )
