"""One copy engine with two queues as SimPy processes: the readable form of `sim.copy_engine`, one of every device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import simpy

from sim.program import LATER_LANE, Op

Process = Generator[simpy.Event, Any, None]


@dataclass(slots=True, kw_only=True)
class CopyQueues:
    """The two queues of a device's copy engine.

    ops         its copies, by index; durations_s [s] by index; packets of the second queue take `packet_s`.
    await_all   waits for all that an operation comes after; end records that it has ended now.
    left_s      what is left of the copies that have joined the second queue and have not ended.
    unsent_s    what was given up of them.
    sending     the copy of the second queue that a packet of `size_s` is sent of, since `begun_s`.
    """

    env: simpy.Environment
    ops: Mapping[int, Op]
    durations_s: Mapping[int, float]
    packet_s: float
    await_all: Callable[[int], Process]
    end: Callable[[int], None]
    first: deque[int] = field(default_factory=deque)
    left_s: dict[int, float] = field(default_factory=dict)
    unsent_s: dict[int, float] = field(default_factory=dict)
    sending: int | None = None
    begun_s: float = 0.0
    size_s: float = 0.0
    joined: dict[int, simpy.Event] = field(init=False)
    served: dict[int, simpy.Event] = field(init=False)
    asked: simpy.Event = field(init=False)

    def __post_init__(self) -> None:
        self.asked = self.env.event()
        self.joined, self.served = ({op: self.env.event() for op in self.ops} for _ in range(2))

    def processes(self, start_s: float) -> tuple[Process, ...]:
        """Those that fill the queues, each in order, and the engine."""
        return self._fill_first(start_s), self._fill_second(start_s), self._engine(start_s)

    def _fill_first(self, start_s: float) -> Process:
        """Copies that are awaited, one after another; one with nothing to copy ends when it is asked for."""
        yield self.env.timeout(start_s)
        for index, op in self.ops.items():
            if op.lanes == LATER_LANE:
                continue
            yield from self.await_all(index)
            if op.rest_of is not None:
                yield self.joined[op.rest_of]
            if op.rest_of is not None and op.drops:
                self._drop(op.rest_of)
                self.end(index)
            elif op.rest_of in self.left_s or (op.rest_of is None and self.durations_s[index] > 0):
                self.first.append(index)
                self._ask()
                yield self.served[index]
            else:
                self.end(index)

    def _fill_second(self, start_s: float) -> Process:
        yield self.env.timeout(start_s)
        for index, op in self.ops.items():
            if op.lanes != LATER_LANE:
                continue
            yield from self.await_all(index)
            self.joined[index].succeed()
            if self.durations_s[index] > 0:
                self.left_s[index] = self.durations_s[index]
                self._ask()
            else:
                self.end(index)

    def _drop(self, index: int) -> None:
        """Nothing more of a copy is sent but the packet that has begun before now."""
        left_s = self.left_s.get(index, 0.0)
        if left_s > 0 and self.sending == index and self.begun_s < self.env.now:
            self.unsent_s[index], self.left_s[index] = left_s - self.size_s, self.size_s
        elif left_s > 0:
            self.unsent_s[index] = self.left_s.pop(index)
            self.end(index)
            self._ask()

    def _ask(self) -> None:
        if not self.asked.triggered:
            self.asked.succeed()

    def _engine(self, start_s: float) -> Process:
        yield self.env.timeout(start_s)
        while True:
            self.asked = self.env.event()
            if self.first:
                yield from self._serve(self.first.popleft())
            elif self.left_s:
                yield from self._send_packet(next(iter(self.left_s)))
            else:
                yield self.asked

    def _serve(self, index: int) -> Process:
        rest_of = self.ops[index].rest_of
        left_s = self.durations_s[index] if rest_of is None else self.left_s.pop(rest_of, 0.0)
        yield self.env.timeout(left_s)
        if rest_of is not None and left_s > 0:
            self.end(rest_of)
        self.end(index)
        self.served[index].succeed()

    def _send_packet(self, index: int) -> Process:
        """A packet of the second queue: taken back where a copy is asked for in the moment that it begins."""
        self.sending, self.begun_s, self.size_s = index, self.env.now, min(self.packet_s, self.left_s[index])
        over = self.env.timeout(self.size_s)
        yield over | self.asked
        if not over.processed and self.env.now == self.begun_s:
            return
        if not over.processed:
            yield over
        self.sending = None
        self.left_s[index] -= self.size_s
        if self.left_s[index] <= 0:
            del self.left_s[index]
            self.end(index)
