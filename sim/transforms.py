"""Schedules that change what travels: transforms of loads between the trace and its prices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.plan import Placement
from placement.reduction import Moves, Reduction
from placement.sources import Sources, by_peers, compressed, padded, reduction_of, source_tokens
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from sim.moving import chosen_moves
from sim.setting import Setting
from sim.steps import capacity_of


def transformed(setting: Setting, placement: Placement, schedule: ScheduleSpec) -> Reduction:
    """The reduction of the setting's steps after what `schedule` does to their loads."""
    chunks, layout = schedule.n_parts, setting.layout
    counted = 1 if schedule.chunks_by == "peers" else chunks
    sources = _sources(setting, placement, schedule, counted)
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
    algorithm = schedule.exchange.algorithm
    reduction = reduction_of(sources, placement, layout, chunks=chunks, keep_pairs=keep_pairs, algorithm=algorithm)
    return reduction if moves is None else _with_moves(reduction, moves)


def _sources(setting: Setting, placement: Placement, schedule: ScheduleSpec, chunks: int) -> Sources:
    """Tokens by source and slot, or the buffers that stand for them where their whole capacity is sent."""
    batches, spec = setting.batches, setting.workload.routing
    if not spec.pad:
        return source_tokens(batches.trace, batches.tokens, placement, setting.layout, chunks=chunks)
    if schedule.exchange.dedup != "none" or schedule.move is not None:
        raise ScenarioError(
            f"workload.routing.pad: a buffer belongs to one expert and stays with it, which exchange.dedup "
            f"{schedule.exchange.dedup}, or a move, does not fit; give exchange: {{dedup: none}} and no move"
        )
    n_devices, shared = setting.layout.n_devices, 1 if spec.group == "device" else setting.layout.n_devices
    rule, model = capacity_of(spec), setting.model
    room = rule.of(batches.tokens.shape[2] * shared, model.top_k, model.n_experts)
    if room // shared < chunks:
        raise ScenarioError(
            f"schedule.chunks: {chunks} chunks of buffers of {room // shared} rows leave some empty; lower "
            "schedule.chunks or raise workload.routing.capacity_factor"
        )
    own = room * np.arange(1, n_devices + 1) // shared - room * np.arange(n_devices) // shared
    return padded(own, batches.n_steps, placement, chunks)


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
