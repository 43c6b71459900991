"""Times of callables on a device: warm-up, rotating inputs, medians with their spread, and signs of disturbance."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

Work = Callable[[int], object]
"""Called with the number of the turn, by which it picks its inputs."""

BUSY_FRAC = 0.1  # share of a point's time that other programs may take of a core before it counts as disturbed
TRIES = 3
PROC_STAT = Path("/proc/stat")
JIFFY_S = 0.01  # of /proc/stat, USER_HZ = 100 on all Linux systems


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Time of one call: median and 10 % and 90 % quantiles [s] of `repeats` calls.

    disturbed  other programs took part of the cores, in every try.
    """

    median_s: float
    p10_s: float
    p90_s: float
    repeats: int
    disturbed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long one point is measured: at least `least` and at most `most` calls, about `budget_s` in all."""

    least: int = 9
    most: int = 41
    budget_s: float = 0.12
    warm_up: int = 2


class Clock(Protocol):
    """What is timed by: events of a GPU, or the clock of the host."""

    def seconds(self, work: Work, first: int, count: int) -> list[float]:
        """Time of each of `count` calls, work(first) and on [s]."""


class HostClock:
    """Wall time of a call on the CPU."""

    def seconds(self, work: Work, first: int, count: int) -> list[float]:
        """Time of each call [s]."""
        found = []
        for turn in range(first, first + count):
            started = time.perf_counter()
            work(turn)
            found.append(time.perf_counter() - started)
        return found


class EventClock:
    """Device time between two events around a call; `cuda` has the names of `torch.cuda`.

    The host runs ahead of the device, so that the time of a short call is that of its launches.
    """

    def __init__(self, cuda: object = torch.cuda) -> None:
        self.cuda = cuda

    def seconds(self, work: Work, first: int, count: int) -> list[float]:
        """Time of each call [s]."""
        pairs = []
        for turn in range(first, first + count):
            begin, end = self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)  # type: ignore[attr-defined]
            begin.record()
            work(turn)
            end.record()
            pairs.append((begin, end))
        self.cuda.synchronize()  # type: ignore[attr-defined]
        return [begin.elapsed_time(end) * 1e-3 for begin, end in pairs]


class GraphClock:
    """Device time of a call as part of a CUDA graph of several: launches by the host take no part in it."""

    def __init__(self, calls: int = 20, cuda: object = torch.cuda) -> None:
        self.calls, self.cuda = calls, cuda

    def seconds(self, work: Work, first: int, count: int) -> list[float]:
        """Time of a call, the mean of a replay of `calls` of them, for each of `count` replays [s]."""
        graph = self.cuda.CUDAGraph()  # type: ignore[attr-defined]
        self.cuda.synchronize()  # type: ignore[attr-defined]
        with self.cuda.graph(graph):  # type: ignore[attr-defined]
            for turn in range(first, first + self.calls):
                work(turn)
        replay: Work = lambda _turn: graph.replay()  # noqa: E731
        events = EventClock(self.cuda)
        events.seconds(replay, 0, 1)
        return [total / self.calls for total in events.seconds(replay, 0, count)]


def clock_of(device: torch.device) -> Clock:
    """The clock of a device's eager calls."""
    return HostClock() if device.type == "cpu" else EventClock()


def measure(work: Work, clock: Clock, limits: Limits | None = None, *, alone: bool = True) -> Timing:
    """Time of work(turn) with turns that go on from call to call, so that inputs rotate.

    alone  nothing else should run on the CPU cores: a point that other programs disturb is measured again.
    """
    bounds = limits or Limits()
    clock.seconds(work, 0, bounds.warm_up)
    timing, turn = _once(work, clock, bounds, bounds.warm_up)
    for _ in range(TRIES - 1):
        if timing.disturbed and alone:
            timing, turn = _once(work, clock, bounds, turn)
    return timing


def _once(work: Work, clock: Clock, bounds: Limits, first: int) -> tuple[Timing, int]:
    watch = Watch()
    one_s = clock.seconds(work, first, 1)[0]
    count = int(np.clip(bounds.budget_s / max(one_s, 1e-9), bounds.least, bounds.most))
    seconds = clock.seconds(work, first + 1, count)
    p10, median, p90 = np.quantile(seconds, [0.1, 0.5, 0.9]).tolist()
    timing = Timing(median_s=median, p10_s=p10, p90_s=p90, repeats=count, disturbed=watch.disturbed())
    return timing, first + 1 + count


class Watch:
    """Whether other programs use this machine's cores from now on; where /proc/stat is missing, nobody is seen."""

    def __init__(self) -> None:
        self.wall_s, self.own_s, self.busy_s = time.perf_counter(), time.process_time(), busy_s()

    def disturbed(self) -> bool:
        """Whether others were busy for more than BUSY_FRAC of the time since, beyond a jiffy or two."""
        others_s, wall_s = self._others_and_wall_s()
        return others_s > BUSY_FRAC * wall_s + 2 * JIFFY_S

    def others_frac(self) -> float:
        """Share of one core that others took since; clock ticks make it coarse below a second."""
        others_s, wall_s = self._others_and_wall_s()
        return max(others_s, 0.0) / wall_s

    def _others_and_wall_s(self) -> tuple[float, float]:
        others_s = busy_s() - self.busy_s - (time.process_time() - self.own_s)
        return others_s, time.perf_counter() - self.wall_s


def busy_s(stat: Path = PROC_STAT) -> float:
    """Time that all cores together have been at work since boot [s]: all but idle and waiting for disks."""
    try:
        fields = stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    ticks = [int(field) for field in fields[:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) * JIFFY_S
