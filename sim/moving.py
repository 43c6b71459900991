"""Schedules that move experts: what is chosen for a setting, its works in a step, and their prices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.exchange_time import Machine
from placement.moves import Fetch, cheaper_to_pull, fetch_of, local_times_s, needed, shadowed
from placement.plan import Placement
from placement.reduction import Moves, Reduction
from placement.sources import Sources
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from sim.durations import Duration, ExchangeTime
from sim.kernel_pricing import machine_of
from sim.program import Layer, Step, Work
from sim.setting import Setting


def chosen_moves(setting: Setting, placement: Placement, schedule: ScheduleSpec, sources: Sources) -> Moves:
    """Which experts move, of tokens int32[layer, step, device, slot].

    Raises ScenarioError where experts are split over devices.
    """
    if setting.layout.tp > 1 or schedule.move is None:
        raise ScenarioError(
            f"schedule.move: a device fetches whole experts, not {setting.layout.tp} parts; use experts.tp 1"
        )
    machine = machine_of(setting, schedule.exchange)
    if schedule.move.kind == "shadow":
        fetched = shadowed(machine, placement, sources, setting.workload.tokens_per_device)
        pulled = np.zeros(len(sources), bool)
    else:
        fetched = needed(placement, sources, ahead=schedule.overlap == "prefetch")
        pulled = np.ones(len(sources), bool)
        if schedule.move.kind == "auto":
            pulled = cheaper_to_pull(machine, placement, sources, fetched)
        fetched = fetched & pulled[:, None, None, None]
    stays = fetched | pulled[:, None, None, None]
    return Moves(
        fetched=fetched,
        local_tokens=np.where(stays, sources, 0),
        pulled=pulled,
        broadcast=schedule.move.kind == "shadow",
    )


def moving(step: Step, moves: Moves) -> Step:
    """The step with the fetches of its layers; where experts are pulled no token travels."""
    row = 0
    layers = []
    for layer in step.layers:
        if layer.gate is None:
            layers.append(layer)
            continue
        layers.append(_moving(layer, layer.number, broadcast=moves.broadcast, pulled=bool(moves.pulled[row])))
        row += 1
    return replace(step, layers=tuple(layers))


def _moving(layer: Layer, number: int, *, broadcast: bool, pulled: bool) -> Layer:
    if not broadcast and not pulled:
        return layer
    fetch, local = Work("fetch", number), Work("local", number)
    return replace(layer, fetch=fetch, local=local, chunks=() if pulled else layer.chunks)


def fetch_in(setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec) -> Fetch | None:
    """Copies of the experts that move, or None where the schedule moves none."""
    moves = reduction.moves
    if moves is None:
        return None
    return fetch_of(machine_of(setting, schedule.exchange), placement, moves.fetched, broadcast=moves.broadcast)


def move_prices(machine: Machine, placement: Placement, moves: Moves, fetch: Fetch) -> dict[str, list[list[Duration]]]:
    """Times of "fetch" and "local" of every MoE layer: kind -> [MoE layer][0] -> duration over [step, device]."""
    local_s = local_times_s(machine, moves.local_tokens, held_experts(placement, moves))
    n_devices = machine.cluster.n_devices
    return {
        "fetch": [
            [ExchangeTime(send_s=send_s, receive_s=receive_s, group_size=n_devices)]
            for send_s, receive_s in zip(fetch.send_s, fetch.receive_s, strict=True)
        ],
        "local": [[times_s] for times_s in local_s],
    }


def held_experts(placement: Placement, moves: Moves) -> NDArray[np.int64]:
    """Experts of the kernel that works on tokens at home, int64[layer, step, device]: copies, and own where pulled."""
    own = placement.slots_per_rank()[:, None, :] * moves.pulled[:, None, None]
    held: NDArray[np.int64] = moves.fetched.sum(axis=-1) + own
    return held


def moved_bytes(setting: Setting, fetch: Fetch | None) -> tuple[float, float]:
    """Bytes of experts sent in a step inside nodes and between them."""
    if fetch is None:
        return 0.0, 0.0
    each = setting.model.expert_bytes / setting.batches.n_steps
    return float(fetch.inside.sum() * each), float(fetch.between.sum() * each)
