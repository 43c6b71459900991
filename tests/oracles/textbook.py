"""Textbook SimPy model of a step: a process per operation and device, a Resource of capacity 1 per lane.

Written from the words of the laws, without a look at the executors, and kept as plain as possible; slow.
"""

from collections.abc import Generator, Iterable, Sequence

import numpy as np
import simpy

from sim.durations import Duration, ExchangeTime, Seconds
from sim.program import Op

Process = Generator[simpy.Event, None, None]
Flow = tuple[int, int]
"""(source, destination)"""


def simulate(
    ops: Sequence[Op], durations: Sequence[Duration], start_s: Seconds, law: str, packet_s: float = np.inf
) -> tuple[Seconds, Seconds]:
    """(end_s, send_end_s), each float64[operation, device]; lanes of device d are free from start_s[d] on."""
    step = Step(ops, start_s)
    polite = any(op.lanes == ("to-device-later",) for op in ops)
    step.packet_s = packet_s
    for index, duration in enumerate(durations):
        exchange = _exchange(step, duration, law) if isinstance(duration, ExchangeTime) else None
        for device in range(len(start_s)):
            if exchange is not None:
                step.env.process(step.send(index, device, exchange))
                step.env.process(step.receive(index, device, exchange))
            elif not isinstance(duration, ExchangeTime):
                copies = polite and ops[index].lanes[0].startswith("to-device")
                make = step.compute if not copies else step.let_pass if len(ops[index].lanes[0]) > 9 else step.pass_by
                step.env.process(make(index, device, float(duration[device])))
    step.env.run()
    return step.end_s, np.where(np.isnan(step.send_end_s), step.end_s, step.send_end_s)


class Step:
    """Lanes and done-events of one step; `end_s` and `send_end_s` are nan until something has ended."""

    def __init__(self, ops: Sequence[Op], start_s: Seconds) -> None:
        self.env, self.ops, self.start_s = simpy.Environment(), ops, [float(s) for s in start_s]
        devices = range(len(start_s))
        lanes: dict[str, None] = dict.fromkeys(lane for op in ops for lane in op.lanes)
        lanes["second queue"] = None
        self.lanes = {name: [simpy.Resource(self.env, capacity=1) for _ in devices] for name in lanes}
        self.engine = [simpy.Resource(self.env, capacity=1) for _ in devices]
        self.freed = [self.env.event() for _ in devices]
        self.sending = [-1 for _ in devices]
        self.begun = [[self.env.event() for _ in devices] for _ in ops]
        self.packet_s, self.left_s = np.inf, dict[tuple[int, int], float]()
        self.done = [[self.env.event() for _ in devices] for _ in ops]
        self.end_s = np.full((len(ops), len(start_s)), np.nan)
        self.send_end_s = self.end_s.copy()

    def dependencies(self, op: int, device: int) -> simpy.Event:
        return self.env.all_of([self.done[dep][device] for dep in self.ops[op].after])

    def finish(self, op: int, device: int) -> None:
        self.end_s[op, device] = self.env.now
        self.done[op][device].succeed()

    def compute(self, op: int, device: int, duration_s: float) -> Process:
        yield self.env.timeout(self.start_s[device])
        with self.lanes[self.ops[op].lanes[0]][device].request() as turn:
            yield turn
            yield self.dependencies(op, device)
            yield self.env.timeout(duration_s)
        self.finish(op, device)

    def pass_by(self, op: int, device: int, duration_s: float) -> Process:
        """A copy of the first queue, or the rest of one of the second: in line with its like, before all packets."""
        yield self.env.timeout(self.start_s[device])
        of = self.ops[op].rest_of
        with self.lanes["to-device"][device].request() as turn:
            yield turn
            yield self.dependencies(op, device)
            if of is not None:
                yield self.begun[of][device]
            if self.ops[op].drops:
                assert of is not None
                self.left_s[of, device] = 0.0
                if self.sending[device] != of and np.isnan(self.end_s[of, device]):
                    self.finish(of, device)
            elif np.isnan(self.end_s[of, device]) if of is not None else duration_s > 0:
                with self.engine[device].request() as engine:
                    yield engine
                    left_s = duration_s if of is None else self.left_s.pop((of, device), 0.0)
                    yield self.env.timeout(left_s)
                if of is not None and left_s > 0:
                    self.finish(of, device)
                self.free(device)
            self.finish(op, device)

    def let_pass(self, op: int, device: int, duration_s: float) -> Process:
        """A copy of the second queue, packet by packet, each of which begins when the moment has nothing else to do."""
        yield self.env.timeout(self.start_s[device])
        with self.lanes["to-device-later"][device].request() as turn:
            yield turn
            yield self.dependencies(op, device)
            self.left_s[op, device] = duration_s
            self.begun[op][device].succeed()
        if duration_s == 0:
            self.finish(op, device)
            return
        with self.lanes["second queue"][device].request() as turn:
            yield turn
            while self.left_s.get((op, device), 0.0) > 0:
                yield self.settled()
                if not self.left_s.get((op, device)):
                    break
                if self.engine[device].count:
                    yield self.freed[device]
                    continue
                with self.engine[device].request() as engine:
                    yield engine
                    if (op, device) not in self.left_s:
                        break
                    size_s = min(self.packet_s, self.left_s[op, device])
                    self.left_s[op, device] -= size_s
                    self.sending[device] = op
                    yield self.env.timeout(size_s)
                    self.sending[device] = -1
                self.free(device)
        if self.left_s.get((op, device)) == 0 and np.isnan(self.end_s[op, device]):
            self.finish(op, device)

    def free(self, device: int) -> None:
        freed, self.freed[device] = self.freed[device], self.env.event()
        freed.succeed()

    def settled(self) -> simpy.Event:
        """Happens now, after all else that happens now."""
        event = self.env.event()
        event._ok, event._value = True, None
        self.env.schedule(event, priority=2)  # type: ignore[arg-type]
        return event

    def send(self, op: int, device: int, exchange: "PortExchange | MessageExchange") -> Process:
        yield self.env.timeout(self.start_s[device])
        with self.lanes[self.ops[op].lanes[0]][device].request() as turn:
            yield turn
            yield self.dependencies(op, device)
            yield self.env.process(exchange.send(device))
        self.send_end_s[op, device] = self.env.now

    def receive(self, op: int, device: int, exchange: "PortExchange | MessageExchange") -> Process:
        yield self.env.timeout(self.start_s[device])
        with self.lanes[self.ops[op].lanes[1]][device].request() as turn:
            yield turn
            yield self.env.process(exchange.receive(device))
        self.finish(op, device)


class PortExchange:
    """Law port: a receive port opens with the first sender of the group, one-sidedly, and closes after the last."""

    def __init__(self, env: simpy.Environment, time: ExchangeTime, n_devices: int) -> None:
        self.env, self.time = env, time
        groups = [range(d - d % time.group_size, d - d % time.group_size + time.group_size) for d in range(n_devices)]
        self.has_begun = [env.event() for _ in range(n_devices)]
        self.has_sent = [env.event() for _ in range(n_devices)]
        self.someone_began = [env.any_of([self.has_begun[peer] for peer in group]) for group in groups]
        self.everyone_sent = [env.all_of([self.has_sent[peer] for peer in group]) for group in groups]

    def send(self, device: int) -> Process:
        self.has_begun[device].succeed()
        yield self.env.timeout(float(self.time.send_s[device]))
        self.has_sent[device].succeed()

    def receive(self, device: int) -> Process:
        yield self.someone_began[device]
        yield self.env.timeout(float(self.time.receive_s[device]))
        yield self.everyone_sent[device]


class MessageExchange:
    """What the laws share that tell messages apart: over on a device when it has been served and has sent all."""

    def __init__(self, env: simpy.Environment, time: ExchangeTime, n_devices: int) -> None:
        assert time.message_s is not None
        self.env, self.latency_s, self.devices = env, time.latency_s, range(n_devices)
        self.begun = [env.event() for _ in self.devices]
        self.opened = [env.event() for _ in self.devices]
        self.sizes_s: list[dict[Flow, float]] = []
        self.sent: list[dict[Flow, simpy.Event]] = []
        self.served: list[dict[Flow, simpy.Event]] = []
        for kind in time.message_s:
            sizes_s = {(i, j): float(kind[i, j]) for i in self.devices for j in self.devices if kind[i, j] > 0}
            self.sizes_s.append(sizes_s)
            self.sent.append({flow: env.event() for flow in sizes_s})
            self.served.append({flow: env.event() for flow in sizes_s})
        self.all_sent = [
            self.env.all_of([*self._of(self.sent, 0, device), self.begun[device]]) for device in self.devices
        ]

    def _of(self, events: list[dict[Flow, simpy.Event]], end: int, device: int) -> list[simpy.Event]:
        return [event for kind in events for flow, event in kind.items() if flow[end] == device]

    def send(self, device: int) -> Process:
        yield self.env.timeout(self.latency_s)
        self.begun[device].succeed()
        yield self.all_sent[device]

    def receive(self, device: int) -> Process:
        self.opened[device].succeed()
        yield self.env.all_of(self._of(self.served, 1, device))
        yield self.all_sent[device]


class FifoExchange(MessageExchange):
    """Law fifo: whole messages, sent in ring order, served by the receiver's port in order of arrival."""

    def __init__(self, env: simpy.Environment, time: ExchangeTime, n_devices: int) -> None:
        super().__init__(env, time, n_devices)
        for kind in range(len(self.sizes_s)):
            ports = [simpy.Resource(env, capacity=1) for _ in self.devices]
            for device in self.devices:
                env.process(self.emit(kind, device, ports))

    def emit(self, kind: int, source: int, ports: list[simpy.Resource]) -> Process:
        yield self.begun[source]
        for hop in range(1, len(self.devices) + 1):
            flow = (source, (source + hop) % len(self.devices))
            if flow in self.sizes_s[kind]:
                yield self.env.timeout(self.sizes_s[kind][flow])
                self.sent[kind][flow].succeed()
                self.env.process(self.serve(kind, flow, ports[flow[1]]))

    def serve(self, kind: int, flow: Flow, port: simpy.Resource) -> Process:
        with port.request() as turn:
            yield turn
            yield self.opened[flow[1]]
            yield self.env.timeout(self.sizes_s[kind][flow])
        self.served[kind][flow].succeed()


class MaxminExchange(MessageExchange):
    """Law maxmin: all messages flow at once, each from when its sender has begun and its receiver has opened."""

    def __init__(self, env: simpy.Environment, time: ExchangeTime, n_devices: int) -> None:
        super().__init__(env, time, n_devices)
        for kind in range(len(self.sizes_s)):
            env.process(self.share(kind))

    def share(self, kind: int) -> Process:
        """Let flows progress until one is done or another becomes active; then share the ports anew."""
        left_s = dict(self.sizes_s[kind])
        while left_s:
            active = [flow for flow in left_s if self.begun[flow[0]].processed and self.opened[flow[1]].processed]
            rates = fair_shares(active)
            needed_s = {flow: left_s[flow] / rates[flow] for flow in active}
            awaited = [self.begun[i] for i, _ in left_s] + [self.opened[j] for _, j in left_s]
            changes = [event for event in awaited if not event.processed]
            since_s = self.env.now
            alarm = self.env.timeout(min(needed_s.values())) if active else self.env.event()
            yield self.env.any_of([alarm, *changes])
            for flow in active:
                left_s[flow] = max(left_s[flow] - rates[flow] * (self.env.now - since_s), 0.0)
                if alarm.processed and needed_s[flow] <= min(needed_s.values()):
                    del left_s[flow]
                    self.sent[kind][flow].succeed()
                    self.served[kind][flow].succeed()


def fair_shares(flows: Iterable[Flow]) -> dict[Flow, float]:
    """Max-min fair rates by filling: raise all rates together; a flow stops rising when one of its ports is full."""
    rates = dict.fromkeys(flows, 0.0)
    ports: dict[tuple[str, int], list[Flow]] = {}
    for source, destination in rates:
        ports.setdefault(("out", source), []).append((source, destination))
        ports.setdefault(("in", destination), []).append((source, destination))
    rising = set(rates)
    while rising:
        headroom: dict[tuple[str, int], float] = {}
        for port, crossing in ports.items():
            if n_rising := sum(flow in rising for flow in crossing):
                headroom[port] = (1.0 - sum(rates[flow] for flow in crossing)) / n_rising
        rise = min(headroom.values())
        for flow in rising:
            rates[flow] += rise
        full = [port for port, room in headroom.items() if room <= rise * (1 + 1e-9) + 1e-12]
        rising.difference_update(*(ports[port] for port in full))
    return rates


def _exchange(step: Step, time: ExchangeTime, law: str) -> PortExchange | MessageExchange:
    """The exchange of one operation; where messages are not told apart it follows law port."""
    laws: dict[str, type[PortExchange | MessageExchange]] = {"fifo": FifoExchange, "maxmin": MaxminExchange}
    kind = PortExchange if time.message_s is None else laws[law]
    return kind(step.env, time, len(step.start_s))
