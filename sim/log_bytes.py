"""Bytes that the exchanges of a logged step carry: the tokens at every device's ports, times the bytes of a token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.reduction import Reduction
from placement.traffic import PortTokens
from scenarios.schedule_specs import ScheduleSpec
from sim.log import OpTimes
from sim.metrics import way_bytes
from sim.pricing import moe_rows
from sim.program import Work
from sim.setting import Setting
from sim.stage_pricing import STAGED
from sim.training import plain_kind

Bytes = NDArray[np.float64]


def with_bytes(
    log: Sequence[OpTimes], step: int, setting: Setting, reduction: Reduction, schedule: ScheduleSpec
) -> tuple[OpTimes, ...]:
    """The log of a step with what every dispatch and combine moves; tiles of a fused exchange carry equal parts.

    Stages of an exchange that is divided inside and between nodes keep no bytes: the reduction counts them together.
    """
    n_devices = len(log[0].begin_s) if log else 0
    if schedule.exchange.algorithm in STAGED or reduction.ports.send_intra.shape[-1] != n_devices:
        return tuple(log)
    there, back = way_bytes(setting, schedule)
    moved = {
        "dispatch": _of_step(reduction.ports, reduction.n_chunks, step) * there,
        "combine": _of_step(reduction.back, reduction.n_chunks, step) * back,
    }
    rows, parts = moe_rows(setting.model), Counter(_exchange(op.work) for op in log)
    return tuple(
        replace(op, moved_bytes=_moved(op.work, moved[kind], rows[op.work.layer], parts[_exchange(op.work)]))
        if (kind := plain_kind(op.work.kind)) in moved
        else op
        for op in log
    )


def _exchange(work: Work) -> tuple[str, int, int]:
    return work.kind, work.layer, work.step


def _moved(work: Work, moved: Bytes, row: int, n_parts: int) -> Bytes:
    """float64[direction, device] of one work; `moved` is that of all [MoE layer, chunk, direction, device]."""
    chunks: Bytes = moved[row + work.step]
    own: Bytes = chunks[work.chunk] if len(chunks) == n_parts else chunks.sum(axis=0) / n_parts
    return own


def _of_step(ports: PortTokens, n_chunks: int, step: int) -> Bytes:
    """Tokens that each device sends and receives in a step, inside its node and beyond."""
    both = np.stack([ports.send_intra + ports.send_inter, ports.receive_intra + ports.receive_inter], axis=2)
    steps: Bytes = both.astype(np.float64).reshape(len(both), -1, n_chunks, *both.shape[2:])
    return steps[:, step]
