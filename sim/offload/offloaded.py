"""A setting whose experts live in the host's memory: what its slots do with the judged steps, priced and measured."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.offload_specs import OffloadSpec
from scenarios.schedule_specs import ScheduleSpec
from sim.offload.guesses import guessed
from sim.offload.misses import split_of
from sim.offload.prices import OffloadPricing, Tiers, caching, miss_costs, tiers_of
from sim.offload.replay import Replayed, Requests, replay
from sim.offload.rules import RULES, tie_break
from sim.offload.slots import check_offload, slots_of
from sim.offload.wanted import Wanted, wanted_of
from sim.pricing import Prices
from sim.program import Step
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Offloaded:
    """What became of every use; `served` masks are bool[step, layer, rank, place]; slots int64[layer, rank]."""

    spec: OffloadSpec
    wanted: Wanted
    served: Replayed
    tiers: Tiers
    slots: NDArray[np.int64]


def offloaded_of(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec, spec: OffloadSpec
) -> Offloaded:
    """The replay of the setting's steps, which follow each other. Raises ScenarioError for what does not fit."""
    check_offload(setting, placement, schedule, spec)
    wanted = wanted_of(setting, placement, reduction, scored=RULES[spec.evict].needs_scores)
    tiers = tiers_of(setting, spec)
    split = split_of(spec.miss, lambda: miss_costs(setting, wanted, tiers))
    replayed = replay(requests_of(setting, placement, wanted, spec), split)
    masks = {one.name: getattr(replayed, one.name).reshape(wanted.tokens.shape) for one in fields(replayed)}
    return Offloaded(spec=spec, wanted=wanted, served=Replayed(**masks), tiers=tiers, slots=slots_of(placement, spec))


def requests_of(setting: Setting, placement: Placement, wanted: Wanted, spec: OffloadSpec) -> Requests:
    """What a replay is asked; rows are layers times ranks."""
    rule, shape = RULES[spec.evict], wanted.tokens.shape
    rows = (shape[0], -1, shape[-1])
    return Requests(
        used=wanted.used.reshape(rows),
        ahead=guessed(wanted, setting, spec.prefetch).reshape(rows) if spec.prefetch is not None else None,
        priorities=rule.priorities(wanted, spec).reshape(rows),
        ties=tie_break(wanted, spec).reshape(rows[1:]),
        slots=slots_of(placement, spec).ravel(),
        placed=wanted.placed.reshape(rows[1:]),
        admits=rule.admits,
    )


def serving(
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
    )
    return caching(step, offloaded.served, offloaded.spec), prices.plus_chunks(pricing.prices())
