"""The event executor: the same op list through SimPy, one process per lane of every device.

The readable reference of what `sim.vector` computes at once, and the way for laws that are not max-plus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import simpy

from scenarios.errors import DeadlockError
from sim.durations import Duration, ExchangeTime, Seconds
from sim.event_copies import CopyQueues
from sim.event_laws import EXCHANGES, Exchange, Process
from sim.program import LATER_LANE, RECEIVE_LANES, SEND_LANES, Lane, OpList
from sim.vector import COPY_LANES, Finished


def execute_events(
    op_list: OpList,
    durations: Sequence[Duration],
    start_s: Seconds | None = None,
    *,
    law: str = "port",
    packet_s: float = np.inf,
) -> Finished:
    """Ends of all operations of one step, as `sim.vector.execute` gives them; arrays are float64[device].

    Raises DeadlockError where operations wait for each other for ever.
    """
    first = durations[0]
    n_devices = len(first.send_s if isinstance(first, ExchangeTime) else first)
    machine = _Machine(
        op_list=op_list, n_devices=n_devices, start_s=np.zeros(n_devices) if start_s is None else start_s
    )
    for index, duration in enumerate(durations):
        if isinstance(duration, ExchangeTime):
            name = "port" if duration.message_s is None else law
            machine.exchanges[index] = EXCHANGES[name](machine.env, duration, n_devices)
    own_lanes = sorted({op.lanes[0] for op in op_list.ops if not op.is_exchange})
    if LATER_LANE[0] in own_lanes:
        own_lanes = [lane for lane in own_lanes if lane not in COPY_LANES]
        for device in range(n_devices):
            _copy_queues(machine, device, durations, packet_s)
    for device in range(n_devices):
        for lane in own_lanes:
            machine.env.process(_own_lane(machine, device, lane, durations))
        for lane in SEND_LANES:
            machine.env.process(_send_lane(machine, device, lane))
        for lane in RECEIVE_LANES:
            machine.env.process(_receive_lane(machine, device, lane))
    machine.env.run()
    return machine.finished()


@dataclass(slots=True, kw_only=True)
class _Machine:
    """One step in execution: `done[op][device]` are events, `end_s[op, device]` the times at which they happened."""

    op_list: OpList
    n_devices: int
    start_s: Seconds
    env: simpy.Environment = field(default_factory=simpy.Environment)
    exchanges: dict[int, Exchange] = field(default_factory=dict)
    copies: list[CopyQueues] = field(default_factory=list)
    done: list[list[simpy.Event]] = field(init=False)
    end_s: Seconds = field(init=False)
    send_end_s: Seconds = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.op_list.ops), self.n_devices)
        self.done = [[self.env.event() for _ in range(shape[1])] for _ in range(shape[0])]
        self.end_s, self.send_end_s = np.full(shape, np.nan), np.full(shape, np.nan)

    def exchanges_on(self, lane: Lane) -> list[tuple[int, Exchange]]:
        """(operation, exchange) of those that occupy the lane, in order."""
        return [(op, exchange) for op, exchange in self.exchanges.items() if lane in self.op_list.ops[op].lanes]

    def end(self, op: int, device: int) -> None:
        """Record that `op` has ended on `device` now, and wake what waits for it."""
        self.end_s[op, device] = self.env.now
        self.done[op][device].succeed()

    def await_all(self, op: int, device: int) -> Process:
        """Wait until every operation that `op` comes after has ended on `device`."""
        for dep in self.op_list.ops[op].after:
            if not self.done[dep][device].processed:
                yield self.done[dep][device]

    def finished(self) -> Finished:
        """Times of all operations; raises DeadlockError where one never ended."""
        stuck = np.argwhere(np.isnan(self.end_s))
        if len(stuck):
            op, device = (int(i) for i in stuck[0])
            waiting = [dep for dep in self.op_list.ops[op].after if np.isnan(self.end_s[dep, device])]
            kind = self.op_list.ops[op].work.kind
            raise DeadlockError(f"operation {op} ({kind}) never ends on device {device}: it waits for {waiting}")
        sent_s = np.where(np.isnan(self.send_end_s), self.end_s, self.send_end_s)
        dropped = [op.rest_of for op in self.op_list.ops if op.rest_of is not None and op.drops]
        unsent_s = {op: np.array([queues.unsent_s.get(op, 0.0) for queues in self.copies]) for op in dropped}
        return Finished(end_s=self.end_s, send_end_s=list(sent_s), unsent_s=unsent_s)


def _copy_queues(machine: _Machine, device: int, durations: Sequence[Duration], packet_s: float) -> None:
    """The lanes of copies of a device, where some let others pass."""
    ops = {index: op for index, op in enumerate(machine.op_list.ops) if op.lanes[0] in COPY_LANES}
    queues = CopyQueues(
        env=machine.env,
        ops=ops,
        durations_s={index: float(np.asarray(durations[index])[device]) for index in ops},
        packet_s=packet_s,
        await_all=lambda op: machine.await_all(op, device),
        end=lambda op: machine.end(op, device),
    )
    machine.copies.append(queues)
    for process in queues.processes(machine.start_s[device]):
        machine.env.process(process)


def _own_lane(machine: _Machine, device: int, lane: str, durations: Sequence[Duration]) -> Process:
    """A lane that exchanges do not use: compute, copies, or the host."""
    yield machine.env.timeout(machine.start_s[device])
    for index, duration in enumerate(durations):
        if not isinstance(duration, ExchangeTime) and machine.op_list.ops[index].lanes[0] == lane:
            yield from machine.await_all(index, device)
            yield machine.env.timeout(duration[device])
            machine.end(index, device)


def _send_lane(machine: _Machine, device: int, lane: Lane) -> Process:
    yield machine.env.timeout(machine.start_s[device])
    for index, exchange in machine.exchanges_on(lane):
        yield from machine.await_all(index, device)
        yield from exchange.send(device)
        machine.send_end_s[index, device] = machine.env.now


def _receive_lane(machine: _Machine, device: int, lane: Lane) -> Process:
    yield machine.env.timeout(machine.start_s[device])
    for index, exchange in machine.exchanges_on(lane):
        yield from exchange.receive(device)
        machine.end(index, device)
