"""One copy engine with two queues, for the vector executor: awaited copies pass those that were asked for ahead.

A copy of the second queue (lane `to-device-later`) is a row of packets of `packet_s`, the last one shorter. Before a
packet begins the engine looks at the first queue (lane `to-device`): whatever is asked for by then, in that very moment
included, goes first. What has begun is not interrupted. Copies of a queue stay in order; an empty one takes no turn.

What is asked for later than a moment does not change what was sent before it, so that one pass over the operations in
their order is exact, as long as a copy is issued after no copy that is asked for later than it: `later` checks that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenarios.errors import DeadlockError
from sim.durations import Seconds
from sim.program import LATER_LANE, Op


@dataclass(slots=True)
class _Copy:
    """A copy in the second queue: when it was asked for, what is left of it, and when it ended (where nothing is)."""

    ready_s: Seconds
    left_s: Seconds
    end_s: Seconds


class CopyEngine:
    """The engines of all devices and steps at once; arrays are float64[..., device].

    unsent_s  by copy, what was given up of it.
    """

    def __init__(self, start_s: Seconds, packet_s: float) -> None:
        self.packet_s = packet_s
        self.free_s = self.asked_s = self.served_s = self.queued_s = start_s
        self.copies: dict[int, _Copy] = {}
        self.queue: list[_Copy] = []
        self.unsent_s: dict[int, Seconds] = {}

    def copied(self, index: int, op: Op, ready_s: Seconds, duration_s: Seconds) -> Seconds:
        """End of a copy of either queue; of the second one it is known only at the end, by `ends_s`."""
        if op.lanes == LATER_LANE:
            self.later(index, ready_s, duration_s)
            return ready_s
        if op.rest_of is None:
            return self.at_once(ready_s, duration_s)
        return self.drop(op.rest_of, ready_s) if op.drops else self.rest(op.rest_of, ready_s)

    def later(self, op: int, ready_s: Seconds, duration_s: Seconds) -> None:
        """Copy `op` joins the second queue. Raises DeadlockError for one that should have joined before others."""
        if (ready_s < self.asked_s).any():
            raise DeadlockError(f"copy {op} is issued after copies that are asked for later than it; issue it first")
        self.queued_s = np.maximum(self.queued_s, ready_s)
        self.copies[op] = _Copy(self.queued_s, duration_s, self.queued_s)
        self.queue.append(self.copies[op])

    def at_once(self, ready_s: Seconds, duration_s: Seconds) -> Seconds:
        """End of a copy of the first queue."""
        self._send_until(np.maximum(ready_s, self.served_s))
        return self._serve(duration_s, self.asked_s)

    def rest(self, op: int, ready_s: Seconds) -> Seconds:
        """End of the copy `op` of the second queue, of which the first one now takes what is left."""
        copy = self._looked_at(op, ready_s)
        rest_end_s = self._serve(copy.left_s, np.maximum(copy.end_s, self.asked_s))
        copy.end_s = np.where(copy.left_s > 0, rest_end_s, copy.end_s)
        copy.left_s = np.zeros_like(copy.left_s)
        return rest_end_s

    def drop(self, op: int, ready_s: Seconds) -> Seconds:
        """When the copy `op` of the second queue is given up; a packet that has begun still ends."""
        copy = self._looked_at(op, ready_s)
        self.unsent_s[op] = copy.left_s
        copy.end_s = np.where(copy.left_s > 0, np.maximum(copy.end_s, self.asked_s), copy.end_s)
        copy.left_s = np.zeros_like(copy.left_s)
        self.served_s = self.asked_s
        return self.asked_s

    def _looked_at(self, op: int, ready_s: Seconds) -> _Copy:
        copy = self.copies[op]
        self._send_until(np.maximum(np.maximum(ready_s, self.served_s), copy.ready_s))
        return copy

    def ends_s(self) -> dict[int, Seconds]:
        """Ends of all copies of the second queue, once nothing passes them any more."""
        self._send_until(np.full_like(self.free_s, np.inf))
        return {op: copy.end_s for op, copy in self.copies.items()}

    def _serve(self, duration_s: Seconds, otherwise_s: Seconds) -> Seconds:
        begun_s = np.maximum(self.free_s, self.asked_s)
        taken = duration_s > 0
        self.free_s = np.where(taken, begun_s + duration_s, self.free_s)
        self.served_s = np.where(taken, self.free_s, otherwise_s)
        return self.served_s

    def _send_until(self, asked_s: Seconds) -> None:
        """Packets of the second queue that begin before `asked_s`."""
        self.asked_s = asked_s
        blocked = np.zeros(asked_s.shape, bool)
        for copy in self.queue:
            begin_s = np.maximum(self.free_s, copy.ready_s)
            sends = (copy.left_s > 0) & ~blocked & (begin_s < asked_s)
            if sends.any():
                packet_s = np.minimum(self.packet_s, np.where(sends, copy.left_s, 1.0))
                packets_s = np.ceil((asked_s - begin_s) / packet_s) * packet_s
                sent_s = np.where(sends, np.minimum(packets_s, copy.left_s), 0.0)
                self.free_s = np.where(sends, begin_s + sent_s, self.free_s)
                copy.left_s = copy.left_s - sent_s
                copy.end_s = np.where(sends, self.free_s, copy.end_s)
            blocked |= copy.left_s > 0
        self.queue = [copy for copy in self.queue if (copy.left_s > 0).any()]
