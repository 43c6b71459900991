"""Schedules that change what travels: transforms of loads between the trace and its prices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.plan import Placement
from placement.reduction import Moves, Reduction
from placement.sources import Sources, by_peers, compressed, reduction_of, source_tokens
from scenarios.schedule_specs import ScheduleSpec
from sim.moving import chosen_moves
from sim.setting import Setting


def transformed(setting: Setting, placement: Placement, schedule: ScheduleSpec) -> Reduction:
    """The reduction of the setting's steps after what `schedule` does to their loads."""
    tokens, chunks, layout = setting.batches.tokens, schedule.n_parts, setting.layout
    counted = 1 if schedule.chunks_by == "peers" else chunks
    sources = source_tokens(setting.trace, tokens, placement, layout, chunks=counted)
    moves = None
    if schedule.move is not None:
        steps = sources.reshape(len(sources), -1, counted, *sources.shape[2:]).sum(axis=2, dtype=np.int32)
        moves = chosen_moves(setting, placement, schedule, steps)
        sources = _travelling(sources, moves, counted)
    if schedule.chunks_by == "peers":
        sources = by_peers(sources, placement, layout, chunks)
    if schedule.payload is not None:
        sources = compressed(sources, schedule.payload.rate)
    keep_pairs = schedule.exchange.law != "port"
    reduction = reduction_of(sources, placement, layout, chunks=chunks, keep_pairs=keep_pairs)
    return reduction if moves is None else _with_moves(reduction, moves)


def _travelling(sources: Sources, moves: Moves, chunks: int) -> Sources:
    stays = np.repeat(moves.fetched | moves.pulled[:, None, None, None], chunks, axis=1)
    left: Sources = np.where(stays, 0, sources)
    return left


def _with_moves(reduction: Reduction, moves: Moves) -> Reduction:
    """The reduction with its moves; tokens that stay count as copies to their own device."""
    pairs = reduction.pairs_total.copy()
    device = np.arange(pairs.shape[-1])
    pairs[:, device, device] += moves.local_tokens.sum(axis=(1, 3), dtype=np.int32)
    return replace(reduction, pairs_total=pairs, moves=moves)
