"""Streams of a device with one interface: CUDA streams, or threads of the CPU that are pinned to cores of their own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, Protocol

import torch

from scenarios.errors import ScenarioError


class Event(Protocol):
    """The end of some work of a stream."""

    def wait(self) -> None:
        """Let the compute lane go on only when the work is done; raises what the work raised."""


class Stream(Protocol):
    """Work that runs in order beside the compute lane."""

    def submit(self, work: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """The end of `work`, which starts when all before it on this stream and all of `after` is done."""


class Lanes(Protocol):
    """A device as the runs see it: the compute lane is the calling thread (or its current CUDA stream)."""

    @property
    def device(self) -> torch.device:
        """Where tensors live."""

    @property
    def copies(self) -> Stream:
        """The stream of copies to the device."""

    @property
    def host(self) -> Stream:
        """Work of the host's cores."""

    def reached(self) -> Event:
        """The end of all that the compute lane has been given so far."""

    def mark(self) -> Any:
        """A point in time of the compute lane, for `seconds`."""

    def synchronise(self) -> None:
        """Return when all work of all streams is done; raises what any of it raised."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Times between consecutive marks [s], after `synchronise`."""


class CpuEvent:
    """Set when the work is done; keeps what it raised."""

    def __init__(self) -> None:
        self._done, self.error = threading.Event(), None

    error: BaseException | None

    def finish(self, error: BaseException | None = None) -> None:
        """The work has ended, well or with an error."""
        self.error = error
        self._done.set()

    def wait(self) -> None:
        """Block the caller until then."""
        self._done.wait()
        if self.error is not None:
            raise self.error


class CpuStream:
    """A thread that works through a queue, pinned to one core; torch releases the interpreter inside its operations."""

    def __init__(self, core: int | None) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], object], Sequence[Event], CpuEvent] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(core,), daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], object], after: Sequence[Event] = ()) -> CpuEvent:
        """See `Stream`; an error of the work reaches everyone who waits for it, and what comes after it."""
        event = CpuEvent()
        self._queue.put((work, after, event))
        return event

    def close(self) -> None:
        """End the thread when its queue is empty."""
        self._queue.put(None)
        self._thread.join()

    def _work(self, core: int | None) -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})  # of this thread alone
        torch.set_num_threads(1)
        while (item := self._queue.get()) is not None:
            work, after, event = item
            try:
                for earlier in after:
                    earlier.wait()
                with torch.inference_mode():
                    work()
            except BaseException as error:  # whatever it is, the one who waits shall see it
                event.finish(error)
            else:
                event.finish()


class CpuLanes:
    """The calling thread as the device, one other thread for copies and for the host: both would share its core."""

    def __init__(self, side_core: int | None) -> None:
        self.device = torch.device("cpu")
        self.side = CpuStream(side_core)
        self.copies = self.host = self.side

    def reached(self) -> CpuEvent:
        """Already true: the calling thread has done what it was given."""
        event = CpuEvent()
        event.finish()
        return event

    def mark(self) -> float:
        """Seconds of a monotonic clock."""
        return time.perf_counter()

    def synchronise(self) -> None:
        """Wait until the side thread is idle."""
        self.side.submit(lambda: None).wait()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        """Differences of the marks [s]."""
        return [later - earlier for earlier, later in pairwise(marks)]

    def close(self) -> None:
        """End the side thread."""
        self.side.close()


@dataclass(slots=True)
class CudaEvent:
    """A CUDA event that the current stream can wait for."""

    event: Any

    def wait(self) -> None:
        """Make the current stream wait; the host goes on."""
        torch.cuda.current_stream().wait_event(self.event)


@dataclass(slots=True)
class CudaStream:
    """A CUDA stream; work is issued at once, and runs on the device in order."""

    stream: Any

    def submit(self, work: Callable[[], object], after: Sequence[Event] = ()) -> CudaEvent:
        """See `Stream`; events of the host's threads are waited for by the host."""
        with torch.cuda.stream(self.stream):
            for earlier in after:
                earlier.wait()
            work()
            return recorded()


@dataclass(slots=True)
class HostThread:
    """The host's cores as a stream beside a GPU: a thread whose work the compute stream's host waits for."""

    thread: CpuStream

    def submit(self, work: Callable[[], object], after: Sequence[Event] = ()) -> CpuEvent:
        """See `Stream`; ends of CUDA work are awaited by the thread itself."""
        return self.thread.submit(work, [_Awaited(one.event) if isinstance(one, CudaEvent) else one for one in after])


@dataclass(slots=True)
class _Awaited:
    """A CUDA event that a thread of the host blocks on."""

    event: Any

    def wait(self) -> None:
        self.event.synchronize()


class CudaLanes:
    """The current CUDA stream, a stream for copies, and a thread of the host."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.copies = CudaStream(torch.cuda.Stream())
        self._thread = CpuStream(None)
        self.host = HostThread(self._thread)

    def reached(self) -> CudaEvent:
        """An event recorded on the current stream."""
        return recorded()

    def mark(self) -> Any:
        """A timed event on the current stream."""
        return recorded(timed=True).event

    def synchronise(self) -> None:
        """Wait for the host's thread, then for the device."""
        self._thread.submit(lambda: None).wait()
        torch.cuda.synchronize()

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Times between the events [s]."""
        return [earlier.elapsed_time(later) / 1e3 for earlier, later in pairwise(marks)]

    def close(self) -> None:
        """End the host's thread."""
        self._thread.close()


def recorded(*, timed: bool = False) -> CudaEvent:
    """An event recorded now on the current CUDA stream."""
    event = torch.cuda.Event(enable_timing=timed)
    event.record(torch.cuda.current_stream())
    return CudaEvent(event)


@contextmanager
def open_lanes(device: str, cores: tuple[int, int] | None = None) -> Iterator[CpuLanes | CudaLanes]:
    """Lanes of "cpu" or "cuda"; `cores` pins the compute lane and the side thread of a CPU for as long as it is open.

    Raises ScenarioError for another device, a missing GPU, or cores that this process may not use.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ScenarioError("torch finds no CUDA device; take --device cpu, or install a torch with CUDA")
        lanes: CpuLanes | CudaLanes = CudaLanes()
    elif device == "cpu":
        lanes = _pinned(cores)
    else:
        raise ScenarioError(f"device '{device}' is not known; choose cpu or cuda")
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        if device == "cpu":
            torch.set_num_threads(1)
            if cores is not None:
                os.sched_setaffinity(0, {cores[0]})
        yield lanes
    finally:
        lanes.close()
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def _pinned(cores: tuple[int, int] | None) -> CpuLanes:
    allowed = os.sched_getaffinity(0)
    if cores is not None and not set(cores) <= allowed:
        raise ScenarioError(f"cores {cores} are not among those of this process, {sorted(allowed)}; choose two of them")
    return CpuLanes(None if cores is None else cores[1])


def two_cores() -> tuple[int, int]:
    """The first two cores of this process; raises ScenarioError where it has one only."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise ScenarioError(f"this process may use core {allowed[0]} only; a device and its side stream need two")
    return allowed[0], allowed[1]
