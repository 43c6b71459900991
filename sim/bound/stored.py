"""Bound of a device whose experts live in the host's memory: how many of their uses are copied, and how many hosted.

Slots spare at most the hits of Belady's rule; every other use is copied or computed by the host, as far as the rule of
misses does either. The best division of them holds whatever the rules of eviction and prefetch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hwmodels import host as host_laws
from hwmodels.moe import expert_shape
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.offload_specs import OffloadSpec
from scenarios.schedule_specs import ScheduleSpec
from sim.bound.demand import Visits
from sim.bound.division import Limits, Row, Uses, device_rows, divided_resources, empty_resource, uses_of_tokens
from sim.bound.resources import Resource, resources
from sim.offload.offloaded import replayed_by_step
from sim.offload.slots import check_offload
from sim.offload.tiers import tiers_of
from sim.offload.wanted import wanted_of
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Uses of the setting's steps, and how they may be served: limits of copies and of uses left to the host."""

    uses: Uses
    limits: Limits


def served_of(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec, spec: OffloadSpec
) -> Served:
    """Uses of the setting's steps, of which Belady's rule misses least. Raises ScenarioError as simulations do."""
    check_offload(setting, placement, schedule, spec)
    if spec.pool == "model" or spec.grades is not None:
        raise ScenarioError("memory.offload: no bound is known of slots that all layers share, or of misses in grades")
    wanted = wanted_of(setting, placement, reduction)
    copies = spec.miss != "host" or spec.prefetch is not None
    best = {"evict": "belady" if copies else "static", "prefetch": None}  # without copies slots stay as they are
    missed = replayed_by_step(setting, placement, wanted, spec.model_copy(update=best)).loaded
    may_leave = wanted.used if copies else missed.reshape(wanted.used.shape)
    uses, n_steps = uses_of_tokens(wanted.tokens, len(wanted.tokens)), len(wanted.tokens)
    hosted = np.bincount(wanted.tokens[may_leave], minlength=int(uses.tokens.max()) + 1)[uses.tokens]
    limits = Limits(
        other=uses.total * copies, away=hosted * float(spec.miss != "load") / n_steps, least=missed.sum() / n_steps
    )
    return Served(uses=uses, limits=limits)


def stored_resources(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    schedule: ScheduleSpec,
    spec: OffloadSpec,
    served: Served,
) -> tuple[Resource, ...]:
    """The rows of a setting at the best division of its uses into those copied, hosted, and spared by the slots."""
    uses = served.uses
    visits = Visits(routed=uses.routed, active=uses.total)
    own = resources(setting, placement, reduction, schedule.exchange, visits)
    rows = [*device_rows(setting, placement, own, uses), *_host_rows(setting, spec, uses)]
    return divided_resources(setting, rows, served.limits)


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
        resource=empty_resource("host link", "links", "s", n_devices, "copies of experts, one at a time on a device"),
        fixed=0.0,
        per_other=tp * float(tiers.copy_s),
        per_away=0 * each,
    )
    dram = cluster.host.dram_bytes_per_s.value * cluster.n_nodes
    yield Row(
        resource=empty_resource("host memory bandwidth", "hardware", "B", dram, "copied and hosted experts once each"),
        fixed=0.0,
        per_other=expert_bytes,
        per_away=expert_bytes * each,
    )
    yield Row(
        resource=empty_resource("host cores", "kernels", "s", n_devices, "law of the cores, a share for each device"),
        fixed=0.0,
        per_other=0.0,
        per_away=tp * expert_s,
    )
