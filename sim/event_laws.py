"""The laws of link sharing as SimPy processes: what `sim.laws` computes at once, event by event."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import simpy

from scenarios.errors import HardwareError
from sim.durations import ExchangeTime
from sim.laws import MAXMIN_DEVICES, fair_rates

Process = Generator[simpy.Event, None, None]


class Countdown:
    """An event that happens when `n` parties have arrived."""

    __slots__ = ("event", "missing")

    def __init__(self, env: simpy.Environment, n: int) -> None:
        self.event, self.missing = env.event(), n

    def arrive(self) -> None:
        """One more party has arrived."""
        self.missing -= 1
        if self.missing == 0:
            self.event.succeed()


class Exchange:
    """One exchange in execution: `send` and `receive` run on the lanes of each device. This base is law `port`."""

    def __init__(self, env: simpy.Environment, time: ExchangeTime, n_devices: int) -> None:
        n_groups = n_devices // time.group_size
        self.env, self.time = env, time
        self.first_begun = [env.event() for _ in range(n_groups)]
        self.all_sent = [Countdown(env, time.group_size) for _ in range(n_groups)]

    def send(self, device: int) -> Process:
        """Occupy the send lane of `device` until its own bytes are out."""
        group = device // self.time.group_size
        if not self.first_begun[group].triggered:
            self.first_begun[group].succeed()
        yield self.env.timeout(self.time.send_s[device])
        self.all_sent[group].arrive()

    def receive(self, device: int) -> Process:
        """Occupy the receive lane of `device` until everything has arrived."""
        group = device // self.time.group_size
        yield self.first_begun[group]
        yield self.env.timeout(self.time.receive_s[device])
        yield self.all_sent[group].event


class _Messages(Exchange):
    """What the laws share that tell messages apart: sizes, and a countdown of arrivals at each device."""

    def __init__(self, env: simpy.Environment, time: ExchangeTime, n_devices: int) -> None:
        super().__init__(env, time, n_devices)
        self.size_s = np.zeros((0, n_devices, n_devices)) if time.message_s is None else time.message_s
        self.n_devices = n_devices
        self.sent = [env.event() for _ in range(n_devices)]
        self.arrived = [env.event() for _ in range(n_devices)]
        self.missing = (self.size_s > 0).sum(axis=(0, 1))
        for device in np.flatnonzero(self.missing == 0):
            self.arrived[device].succeed()

    def arrive(self, device: int) -> None:
        """One more message has arrived at `device`."""
        self.missing[device] -= 1
        if self.missing[device] == 0:
            self.arrived[device].succeed()


class FifoExchange(_Messages):
    """Law `fifo`: a process per send port puts whole messages into the store of the receiver's port."""

    def __init__(self, env: simpy.Environment, time: ExchangeTime, n_devices: int) -> None:
        super().__init__(env, time, n_devices)
        self.inbox = [[simpy.Store(env) for _ in range(n_devices)] for _ in self.size_s]

    def send(self, device: int) -> Process:  # noqa: D102
        yield self.env.timeout(self.time.latency_s)
        yield self.env.all_of([self.env.process(self._send_port(port, device)) for port in range(len(self.size_s))])
        self.sent[device].succeed()

    def _send_port(self, port: int, device: int) -> Process:
        for hop in range(1, self.n_devices + 1):
            receiver = (device + hop) % self.n_devices
            size_s = self.size_s[port, device, receiver]
            if size_s > 0:
                yield self.env.timeout(size_s)
                self.inbox[port][receiver].put(size_s)

    def receive(self, device: int) -> Process:  # noqa: D102
        for port in range(len(self.size_s)):
            self.env.process(self._receive_port(port, device))
        yield self.arrived[device]
        yield self.sent[device]

    def _receive_port(self, port: int, device: int) -> Process:
        for _ in range(int((self.size_s[port, :, device] > 0).sum())):
            yield (message := self.inbox[port][device].get())
            yield self.env.timeout(float(message.value or 0.0))
            self.arrive(device)


class MaxminExchange(_Messages):
    """Law `maxmin`: rates are shared anew whenever a flow starts or ends."""

    def __init__(self, env: simpy.Environment, time: ExchangeTime, n_devices: int) -> None:
        super().__init__(env, time, n_devices)
        if n_devices > MAXMIN_DEVICES:
            raise HardwareError(f"law maxmin is meant for at most {MAXMIN_DEVICES} devices, not {n_devices}: use port")
        self.begun, self.opened = np.zeros(n_devices, bool), np.zeros(n_devices, bool)
        self.left_s = self.size_s.copy()
        self.out_missing = (self.size_s > 0).sum(axis=(0, 2))
        self.rates = np.zeros_like(self.size_s)
        self.since_s = env.now
        self.epoch = 0

    def send(self, device: int) -> Process:  # noqa: D102
        yield self.env.timeout(self.time.latency_s)
        self.begun[device] = True
        if self.out_missing[device] == 0:
            self.sent[device].succeed()
        self._share()
        yield self.sent[device]

    def receive(self, device: int) -> Process:  # noqa: D102
        self.opened[device] = True
        self._share()
        yield self.arrived[device]
        yield self.sent[device]

    def _share(self) -> None:
        """Let flows progress to now, retire those that are done, and share the ports among the rest."""
        elapsed_s = self.env.now - self.since_s
        flowing = self.rates > 0
        ended = flowing & (self.left_s - self.rates * elapsed_s <= 1e-14 * np.maximum(self.size_s, self.env.now))
        self.left_s = np.where(ended, 0.0, self.left_s - self.rates * elapsed_s)
        self.since_s = self.env.now
        for _, source, receiver in np.argwhere(ended):
            self.arrive(receiver)
            self.out_missing[source] -= 1
            if self.out_missing[source] == 0:
                self.sent[source].succeed()
        flowing = (self.left_s > 0) & self.begun[:, None] & self.opened[None, :]
        self.rates = np.array([fair_rates(kind) for kind in flowing]).reshape(flowing.shape)
        self.epoch += 1
        if flowing.any():
            self.env.process(self._wake(float((self.left_s[flowing] / self.rates[flowing]).min()), self.epoch))

    def _wake(self, delay_s: float, epoch: int) -> Process:
        yield self.env.timeout(delay_s)
        if epoch == self.epoch:
            self._share()


EXCHANGES: dict[str, type[Exchange]] = {"port": Exchange, "fifo": FifoExchange, "maxmin": MaxminExchange}
