"""A setting whose experts live in the host's memory: what its slots do with the judged steps, priced and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.offload_specs import OffloadSpec
from scenarios.schedule_specs import ScheduleSpec
from sim.offload.grades import Low, graded
from sim.offload.guesses import guessed
from sim.offload.misses import split_of
from sim.offload.prices import OffloadPricing, Tiers, caching, miss_costs, tiers_of
from sim.offload.replay import Replayed, Requests, replay
from sim.offload.rules import RULES, keeper_of, tie_break
from sim.offload.slots import check_offload, low_slots_of, slots_of
from sim.offload.wanted import Mask, Wanted, in_pool, out_of_pool, pooled, wanted_of
from sim.pricing import Prices
from sim.program import Step
from sim.setting import Setting

Masks = TypeVar("Masks", Replayed, Low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offloaded:
    """What became of every use; `served` masks are bool[step, layer, rank, place]; slots int64[layer, rank]."""

    spec: OffloadSpec
    wanted: Wanted
    served: Replayed
    tiers: Tiers
    slots: NDArray[np.int64]
    low: Low | None = None


def offloaded_of(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec, spec: OffloadSpec
) -> Offloaded:
    """The replay of the setting's steps, which follow each other. Raises ScenarioError for what does not fit."""
    check_offload(setting, placement, schedule, spec)
    wanted = wanted_of(setting, placement, reduction, scored=RULES[spec.evict].needs_scores, grades=spec.grades)
    tiers, slots = tiers_of(setting, spec, wanted), slots_of(placement, spec)
    seen = pooled(wanted) if spec.pool == "model" else wanted
    requests = requests_of(setting, placement, wanted, spec)
    low = None
    if spec.grades is not None and seen.dear is not None and seen.cheap is not None:
        grades = (seen.dear.reshape(requests.used.shape), seen.cheap.reshape(requests.used.shape))
        replayed, low = graded(requests, grades, low_slots_of(placement, spec).ravel())
    else:
        replayed = replay(requests, split_of(spec.miss, lambda: miss_costs(setting, seen, tiers)))

    def by_layer(mask: Mask) -> Mask:
        shape = wanted.tokens.shape
        return out_of_pool(mask, shape) if spec.pool == "model" else mask.reshape(shape)

    return Offloaded(
        spec=spec,
        wanted=wanted,
        served=_changed(replayed, by_layer),
        tiers=tiers,
        slots=slots,
        low=None if low is None else _changed(low, by_layer),
    )


def requests_of(setting: Setting, placement: Placement, wanted: Wanted, spec: OffloadSpec) -> Requests:
    """What a replay is asked; rows are layers times ranks, or ranks where all layers share the slots."""
    shared = spec.pool == "model"
    seen = pooled(wanted) if shared else wanted
    asked = guessed(wanted, setting, spec.prefetch) if spec.prefetch is not None else None
    rows = (len(seen.tokens), -1, seen.tokens.shape[-1])
    slots, ties = slots_of(placement, spec).ravel(), tie_break(seen, spec).reshape(rows[1:])
    return Requests(
        used=seen.used.reshape(rows),
        ahead=None if asked is None else (in_pool(asked) if shared else asked).reshape(rows),
        keeper=keeper_of(seen, spec, slots, ties),
        ties=ties,
        slots=slots,
        placed=seen.placed.reshape(rows[1:]),
        admits=RULES[spec.evict].admits,
    )


def _changed(masks: Masks, change: Callable[[Mask], Mask]) -> Masks:
    """The value with every mask changed."""
    return replace(masks, **{one.name: change(getattr(masks, one.name)) for one in fields(masks)})


def from_host(
    step: Step, prices: Prices, offloaded: Offloaded, priced: tuple[Setting, Placement, Reduction, ScheduleSpec]
) -> tuple[Step, Prices]:
    """The step and its prices with the works that serve experts from the host's memory."""
    setting, placement, reduction, schedule = priced
    pricing = OffloadPricing(
        setting=setting,
        placement=placement,
        reduction=reduction,
        exchange=schedule.exchange,
        wanted=offloaded.wanted,
        served=offloaded.served,
        tiers=offloaded.tiers,
        spec=offloaded.spec,
        low=offloaded.low,
    )
    return caching(step, pricing), prices.plus_chunks(pricing.prices())
