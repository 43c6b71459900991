"""The event log: what happened on every lane of every device, read back from an executed op list on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sim.durations import Duration, ExchangeTime, Seconds
from sim.program import SEND_LANES, OpList, Work
from sim.vector import Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTimes:
    """One operation of one step on all devices, float64[device] each.

    begin_s      lanes taken up.
    busy_s       the device's own work: computing, or the longer of its two ports.
    end_s        the operation is over; begin + busy < end is time spent waiting for others.
    moved_bytes  float64[2, device]: what each device sends, and receives; None where nobody counted it.
    """

    work: Work
    lane: str
    begin_s: Seconds
    busy_s: Seconds
    end_s: Seconds
    moved_bytes: NDArray[np.float64] | None = None


def begins_s(op_list: OpList, durations: Sequence[Duration], finished: Finished) -> list[Seconds]:
    """Begin of every operation, float64[..., device]: a computation's end less its time, an exchange's first byte.

    Of a copy that others passed: its end less its time, all the same; of one given up, the time of what was sent.

    Lanes are taken to be free from time 0 on, as in the replay of a trace.
    """
    begins: list[Seconds] = []
    for index, duration in enumerate(durations):
        if isinstance(duration, ExchangeTime):
            begins.append(_ready_s(op_list, index, finished))
        else:
            begins.append(finished.end_s[index] - duration + finished.unsent_s.get(index, 0.0))
    return begins


def _ready_s(op_list: OpList, index: int, finished: Finished) -> Seconds:
    """When all that an exchange comes after has ended and its send lane is free."""
    ready = [finished.end_s[dep] for dep in op_list.waits[index]]
    ready += [finished.send_end_s[dep] for lane, dep in op_list.lane_waits[index] if lane in SEND_LANES]
    return np.maximum.reduce(ready) if ready else np.zeros_like(finished.end_s[index])


def busy_s(duration: Duration) -> Seconds:
    """The device's own work in an operation, without waiting for others; of an exchange, that of law `port`."""
    return np.maximum(duration.send_s, duration.receive_s) if isinstance(duration, ExchangeTime) else duration


def step_log(op_list: OpList, durations: Sequence[Duration], finished: Finished, step: int) -> tuple[OpTimes, ...]:
    """The log of one step of a batch of steps [step, device]."""
    begins = begins_s(op_list, durations, finished)
    return tuple(
        OpTimes(
            work=op.work,
            lane="exchange" if op.is_exchange else op.lanes[0],
            begin_s=begins[index][step],
            busy_s=busy_s(durations[index])[step]
            - (finished.unsent_s[index][step] if index in finished.unsent_s else 0),
            end_s=finished.end_s[index][step],
        )
        for index, op in enumerate(op_list.ops)
    )


def covered_s(begins: Sequence[Seconds], ends: Sequence[Seconds]) -> NDArray[np.float64]:
    """Time covered by at least one interval, float64[..., device]."""
    if any((later < before).any() for before, later in pairwise(begins)):
        order = np.argsort(begins, axis=0, kind="stable")
        begins, ends = (list(np.take_along_axis(np.array(times), order, axis=0)) for times in (begins, ends))
    total, until = np.zeros_like(ends[0]), np.full_like(ends[0], -np.inf)
    for begin, end in zip(begins, ends, strict=True):
        total += np.maximum(end - np.maximum(begin, until), 0.0)
        until = np.maximum(until, end)
    return total
