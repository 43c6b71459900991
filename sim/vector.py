"""The vector executor: one max-plus update over all devices per operation, exact for first-in-first-out lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.copy_engine import CopyEngine
from sim.durations import Duration, ExchangeTime, Seconds
from sim.laws import Law, port
from sim.program import LATER_LANE, SEND_LANES, OpList

COPY_LANES = ("to-device", "to-device-later")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Times of an executed op list.

    end_s       float64[operation, ..., device]: when each operation has ended on each device.
    send_end_s  by operation, float64[..., device]: when an exchange frees the send lane; equal to end_s elsewhere.
    unsent_s    by operation, float64[..., device]: time that copies would have taken for what was given up of them.
    """

    end_s: Seconds
    send_end_s: Sequence[Seconds]
    unsent_s: Mapping[int, Seconds] = field(default_factory=dict)


def execute(
    op_list: OpList,
    durations: Sequence[Duration],
    start_s: Seconds | None = None,
    *,
    law: Law = port,
    packet_s: float = np.inf,
) -> Finished:
    """Ends of all operations when every lane of device d is free from `start_s[..., d]` on (default 0).

    `durations[i]` belongs to operation i: float64[..., device], or an ExchangeTime of such arrays. An exchange whose
    messages are not told apart follows law `port`. Copies let others pass after every `packet_s`, or when they end.
    """
    if start_s is None:
        start_s = np.zeros_like(_shape_of(durations[0]))
    all_ends_s = np.empty((len(durations), *start_s.shape))
    end_s = list(all_ends_s)
    send_end_s = _send_ends(end_s, durations)
    engine = CopyEngine(start_s, packet_s) if any(op.lanes == LATER_LANE for op in op_list.ops) else None
    for index, (duration, waits, lane_waits) in enumerate(
        zip(durations, op_list.waits, op_list.lane_waits, strict=True)
    ):
        ready_s = _latest(end_s, waits, start_s)
        if isinstance(duration, ExchangeTime):
            free_s = start_s
            for lane, before in lane_waits:
                if lane in SEND_LANES:
                    ready_s = np.maximum(ready_s, send_end_s[before])
                else:
                    free_s = end_s[before]
            (port if duration.message_s is None else law)(ready_s, free_s, duration, send_end_s[index], end_s[index])
        elif engine is not None and op_list.ops[index].lanes[0] in COPY_LANES:
            end_s[index][...] = engine.copied(index, op_list.ops[index], ready_s, duration)
        else:
            for _, before in lane_waits:
                ready_s = np.maximum(ready_s, end_s[before])
            np.add(ready_s, duration, out=end_s[index])
    for index, ended_s in engine.ends_s().items() if engine is not None else ():
        end_s[index][...] = ended_s
    return Finished(
        end_s=all_ends_s,
        send_end_s=send_end_s,
        unsent_s={} if engine is None else dict(sorted(engine.unsent_s.items())),
    )


def _send_ends(end_s: Sequence[Seconds], durations: Sequence[Duration]) -> list[Seconds]:
    """Room for the times at which send lanes are free again: of exchanges a time of their own."""
    send_end_s = list(end_s)
    exchanges = [index for index, duration in enumerate(durations) if isinstance(duration, ExchangeTime)]
    for index, sent_s in zip(exchanges, np.empty((len(exchanges), *end_s[0].shape)), strict=True):
        send_end_s[index] = sent_s
    return send_end_s


def _latest(end_s: Sequence[Seconds], waits: tuple[int, ...], start_s: Seconds) -> Seconds:
    if not waits:
        return start_s
    latest_s = end_s[waits[0]]
    for dep in waits[1:]:
        latest_s = np.maximum(latest_s, end_s[dep])
    return latest_s


def _shape_of(duration: Duration) -> Seconds:
    return duration.send_s if isinstance(duration, ExchangeTime) else duration
