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
from sim.offload.guesses import guessed, ordered_guess
from sim.offload.host_cache import read_from_drive
from sim.offload.misses import split_of
from sim.offload.prices import OffloadPricing, caching, miss_costs
from sim.offload.replay import Replayed, Requests, Split, replay
from sim.offload.rules import RULES, keeper_of, tie_break
from sim.offload.slots import check_offload, low_slots_of, slots_of
from sim.offload.tiers import Tiers, tiers_of
from sim.offload.wanted import (
    Mask,
    Scores,
    Wanted,
    before_accesses,
    in_pool,
    one_by_one,
    out_of_pool,
    pooled,
    wanted_of,
)
from sim.pricing import Prices
from sim.program import Step
from sim.setting import Setting

Masks = TypeVar("Masks", Replayed, Low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offloaded:
    """What became of every use; `served` masks are bool[step, layer, rank, place]; slots int64[layer, rank].

    guess  float64[step, layer, rank, place]: the order of copies ahead where others pass them; None elsewhere.
    on_drive  bool[step, layer, rank, place]: what was read from the host's drive; None without one.
    """

    spec: OffloadSpec
    wanted: Wanted
    served: Replayed
    tiers: Tiers
    slots: NDArray[np.int64]
    low: Low | None = None
    guess: Scores | None = None
    on_drive: Mask | None = None


def offloaded_of(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec, spec: OffloadSpec
) -> Offloaded:
    """The replay of the setting's steps, which follow each other. Raises ScenarioError for what does not fit."""
    check_offload(setting, placement, schedule, spec)
    wanted = wanted_of(setting, placement, reduction, scored=RULES[spec.evict].needs_scores, grades=spec.grades)
    tiers, slots = tiers_of(setting, spec, wanted), slots_of(placement, spec)
    seen = pooled(wanted) if spec.pool == "model" else wanted
    low = None
    if spec.grades is not None and seen.dear is not None and seen.cheap is not None:
        requests = requests_of(setting, placement, wanted, spec)
        grades = (seen.dear.reshape(requests.used.shape), seen.cheap.reshape(requests.used.shape))
        replayed, low = graded(requests, grades, low_slots_of(placement, spec).ravel())
    else:
        split = split_of(spec.miss, lambda: miss_costs(setting, seen, tiers))
        replayed = replayed_by_step(setting, placement, wanted, spec, split)

    def by_layer(mask: Mask) -> Mask:
        shape = wanted.tokens.shape
        return out_of_pool(mask, shape) if spec.pool == "model" else mask.reshape(shape)

    served = _changed(replayed, by_layer)
    return Offloaded(
        spec=spec,
        wanted=wanted,
        served=served,
        on_drive=None if spec.ssd is None else read_from_drive(setting, wanted, served, spec),
        tiers=tiers,
        slots=slots,
        low=None if low is None else _changed(low, by_layer),
        guess=_order_of(wanted, setting, spec),
    )


def _order_of(wanted: Wanted, setting: Setting, spec: OffloadSpec) -> Scores | None:
    if spec.prefetch is None or spec.priority == "fifo":
        return None
    return ordered_guess(wanted, setting, spec.prefetch)


def replayed_by_step(
    setting: Setting, placement: Placement, wanted: Wanted, spec: OffloadSpec, split: Split | None = None
) -> Replayed:
    """The replay by the scenario's contract: masks bool[step, row, place], of one pool [step and layer, row, place]."""
    requests = requests_of(setting, placement, wanted, spec)
    replayed = replay(requests, split)
    n_events = len(wanted.tokens) * (wanted.tokens.shape[1] if spec.pool == "model" else 1)

    def by_step(mask: Mask) -> Mask:
        if len(mask) == n_events:
            return mask
        whole: Mask = np.logical_or.reduce(mask.reshape(n_events, -1, *mask.shape[1:]), axis=1)
        return whole

    return _changed(replayed, by_step)


def requests_of(setting: Setting, placement: Placement, wanted: Wanted, spec: OffloadSpec) -> Requests:
    """What a replay is asked; rows are layers times ranks, or ranks where all layers share the slots."""
    shared = spec.pool == "model"
    seen = pooled(wanted) if shared else wanted
    asked = guessed(wanted, setting, spec.prefetch) if spec.prefetch is not None else None
    ahead = None if asked is None else in_pool(asked) if shared else asked
    if spec.replay == "per-access":
        seen = one_by_one(seen)
        ahead = None if ahead is None else before_accesses(ahead, seen.n_accesses)
    rows = (len(seen.tokens), -1, seen.tokens.shape[-1])
    slots, ties = slots_of(placement, spec).ravel(), tie_break(seen, spec).reshape(rows[1:])
    return Requests(
        used=seen.used.reshape(rows),
        ahead=None if ahead is None else ahead.reshape(rows),
        keeper=keeper_of(seen, spec, slots, ties),
        ties=ties,
        slots=slots,
        placed=seen.placed.reshape(rows[1:]),
        admits=RULES[spec.evict].admits,
        cancels=spec.prefetch is not None and spec.prefetch.cancel,
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
        guess=offloaded.guess,
        on_drive=offloaded.on_drive,
    )
    priced_copies = replace(prices.plus_chunks(pricing.prices()), packet_s=offloaded.tiers.packet_s)
    return caching(step, pricing), priced_copies
