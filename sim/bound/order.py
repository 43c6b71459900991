"""What the order of a layer's works forbids where exchanges are calls of their own.

A device attends and gates before it dispatches, and has its results back before it attends again. So either the tokens
of a layer stay together, and experts and exchange alone overlap, or the whole step is cut into microbatches, whose
kernels are called, and whose experts are read, once for each. Kernels that move tokens themselves (`alpha-beta` stands
for those, too) are not held to that. Of microbatches those of the plan are tried, and two.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.schedule_specs import ScheduleSpec
from sim.bound.demand import Visits, visits_of
from sim.bound.resources import Resource, experts_floor_s, link_resources, other_kernels_s
from sim.policies import MICROBATCHED
from sim.pricing import layer_prices
from sim.session import Session
from sim.setting import Setting

IN_CHAIN = ("attention", "windowed attention", "gate", "mlp", "head")
"""Works that no exchange of their own tokens runs beside, where a step is not cut into microbatches."""
NAME = "layers in order"


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatches:
    """A step cut into so many microbatches; visits: of the experts of a mean one."""

    number: int
    visits: Visits


def microbatches_of(
    session: Session, setting: Setting, placement: Placement, schedule: ScheduleSpec, numbers: Collection[int]
) -> tuple[Microbatches, ...]:
    """The step in so many microbatches each, ascending; none with more than it can be cut into."""
    most = 1 if setting.workload.prompt_tokens else setting.workload.tokens_per_device
    found = []
    for number in sorted(number for number in numbers if number <= most):
        cut = {"overlap": "two-batch" if number > 1 else "none", "chunks": number, "search": ()}
        reduction = session.reduction(setting, placement, schedule.model_copy(update=cut))
        visits = visits_of(placement, replace(reduction, n_chunks=1), setting.widths)
        found.append(Microbatches(number=number, visits=visits))
    return tuple(found)


def cuts_tried(schedule: ScheduleSpec) -> set[int]:
    """Numbers of microbatches that the best order is sought among: 1, 2, and those of the plan's schedules."""
    return {1, 2, *(one.chunks for one in schedule.search or (schedule,) if one.overlap in MICROBATCHED)}


def device_s(setting: Setting, placement: Placement, cut: Microbatches) -> float:
    """Device seconds of a mean step in microbatches at least, by the kernel laws, experts spread evenly."""
    others_s = other_kernels_s(setting, layer_prices(setting, cut.number))
    return others_s + cut.number * experts_floor_s(setting, placement, cut.visits)


def holds(setting: Setting, schedule: ScheduleSpec) -> bool:
    """Whether all exchanges of these schedules are calls of their own, beside other ones."""
    schedules = schedule.search or (schedule,)
    return setting.cluster.n_devices > 1 and all(
        one.exchange.kernel != "alpha-beta" and one.move is None and not setting.workload.routing.pad
        for one in schedules
    )


def order_resource(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    schedule: ScheduleSpec,
    cuts: tuple[Microbatches, ...],
) -> Resource:
    """Device seconds of the best order: attention, then the longer of experts and exchange; or microbatches.

    By Jensen's inequality the mean device's maximum of two lanes is at least the maximum of their means.
    """
    n_tokens = float(setting.workload.tokens_per_device * setting.cluster.n_devices)
    prices = layer_prices(setting)
    ports = link_resources(setting, prices, reduction, schedule.exchange)
    ports_s = max(row.demand_per_token for row in ports if row.name == "send ports") * n_tokens
    chain_s = other_kernels_s(setting, {kind: price for kind, price in prices.items() if kind in IN_CHAIN})
    times_s = {"uncut": chain_s + max(ports_s, experts_floor_s(setting, placement, cuts[0].visits))}
    for cut in cuts[1:]:
        times_s[f"{cut.number} microbatches"] = max(ports_s, device_s(setting, placement, cut))
    best = min(times_s, key=lambda name: times_s[name])
    return Resource(
        name=NAME,
        kind="kernels",
        unit="s",
        demand_per_token=times_s[best] / n_tokens,
        capacity=float(setting.cluster.n_devices),
        holds="this plan",
        detail=f"the least of {', '.join(times_s)}: {best}; exchange calls of their own",
    )
