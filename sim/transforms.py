"""Schedules that change what travels: transforms of loads between the trace and its prices."""

from __future__ import annotations

from placement.plan import Placement
from placement.reduction import Reduction
from placement.sources import compressed, reduction_of, source_tokens
from scenarios.schedule_specs import ScheduleSpec
from sim.setting import Setting


def transformed(setting: Setting, placement: Placement, schedule: ScheduleSpec) -> Reduction:
    """The reduction of the setting's steps after what `schedule` does to their loads."""
    tokens, chunks = setting.batches.tokens, schedule.n_parts
    sources = source_tokens(setting.trace, tokens, placement, setting.layout, chunks=chunks)
    if schedule.payload is not None:
        sources = compressed(sources, schedule.payload.rate)
    keep_pairs = schedule.exchange.law != "port"
    return reduction_of(sources, placement, setting.layout, chunks=chunks, keep_pairs=keep_pairs)
