"""Common ground of all benchmarks: CPU time of one thread, and the machine's own rate to scale by."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import simpy

REFERENCE_EVENTS_PER_S = 0.8e6  # the machine that the goals were set on


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One goal and what was measured; `scaled` is `measured` on a machine of the reference rate."""

    goal: str
    unit: str
    target: float
    measured: float
    scales: bool = True
    at_most: bool = False

    def scaled(self, events_per_s: float) -> float:
        if not self.scales:
            return self.measured
        factor = events_per_s / REFERENCE_EVENTS_PER_S
        return self.measured * factor if self.at_most else self.measured / factor

    def ok(self, events_per_s: float) -> bool:
        value = self.scaled(events_per_s)
        return value <= self.target if self.at_most else value >= self.target


def best_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Least CPU seconds of `repeats` calls: the least disturbed one."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def simpy_events_per_s(n_processes: int = 100, n_events: int = 50_000) -> float:
    """SimPy's process + timeout rate here: the calibration of every figure that is not a ratio."""

    def waits(env: simpy.Environment) -> Generator[simpy.Event, None, None]:
        for _ in range(n_events // n_processes):
            yield env.timeout(1)

    def run() -> None:
        env = simpy.Environment()
        for _ in range(n_processes):
            env.process(waits(env))
        env.run()

    return n_events / best_s(run)
