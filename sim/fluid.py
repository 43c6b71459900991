"""The fluid executor: operations of a device slow each other down while they run at the same time on different lanes.

Lanes share a device's memory, caches and multiprocessors, so that the law is not max-plus. An operation of work w [s]
that runs beside others progresses at the rate 1 / slowdown, which changes when any of them begins or ends:

    end = the time at which the integral of the rate since its begin is w.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import DeadlockError
from sim.program import Lane, OpList, Work

Slowdown = Callable[[Work, Sequence[Work]], float]
"""(work, works that run beside it on the other lanes) -> factor of its time, 1 or more where it is disturbed."""


def unhindered(work: Work, others: Sequence[Work]) -> float:
    """No slowdown: the law of the other executors."""
    del work, others
    return 1.0


def execute_fluid(
    op_list: OpList, durations_s: Sequence[float], slowdown: Slowdown = unhindered
) -> NDArray[np.float64]:
    """Ends of all operations of one device, float64[operation] [s]; durations are those of operations alone.

    Lanes are first in, first out. Operations that end at the same time do so before others begin. Raises DeadlockError
    where operations wait for each other for ever.
    """
    device = _Device(op_list, list(map(float, durations_s)))
    while device.waiting:
        device.begin_what_can()
        if not device.left_s:
            op = next(lane[0] for lane in device.lanes.values() if lane)
            raise DeadlockError(f"operation {op} ({op_list.ops[op].work.kind}) never begins: it waits for others")
        device.advance(slowdown)
    return device.end_s


@dataclass(slots=True)
class _Device:
    """`lanes`: operations not yet ended, in order; `left_s`: work left of those that run; `ended` by operation."""

    op_list: OpList
    durations_s: list[float]
    now_s: float = 0.0
    lanes: dict[Lane, deque[int]] = field(default_factory=dict)
    left_s: dict[int, float] = field(default_factory=dict)
    end_s: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.end_s = np.full(len(self.op_list.ops), np.nan)
        for index, op in enumerate(self.op_list.ops):
            self.lanes.setdefault(op.lanes[0], deque()).append(index)

    @property
    def waiting(self) -> bool:
        """Whether anything has not ended."""
        return any(self.lanes.values())

    def begin_what_can(self) -> None:
        """Start the first operation of every lane whose predecessors have ended."""
        for lane in self.lanes.values():
            if (
                lane
                and lane[0] not in self.left_s
                and not np.isnan(self.end_s[list(self.op_list.ops[lane[0]].after)]).any()
            ):
                self.left_s[lane[0]] = self.durations_s[lane[0]]

    def advance(self, slowdown: Slowdown) -> None:
        """Let time pass until the next end."""
        works = {index: self.op_list.ops[index].work for index in self.left_s}
        factors = {
            index: slowdown(work, [other for at, other in works.items() if at != index])
            for index, work in works.items()
        }
        needed_s = {index: left_s * factors[index] for index, left_s in self.left_s.items()}
        passed_s = min(needed_s.values())
        self.now_s += passed_s
        for index, need_s in needed_s.items():
            if need_s <= passed_s:
                self.end_s[index] = self.now_s
                del self.left_s[index]
                self.lanes[self.op_list.ops[index].lanes[0]].popleft()
            else:
                self.left_s[index] -= passed_s / factors[index]
