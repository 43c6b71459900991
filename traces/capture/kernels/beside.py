"""Work that runs beside what is timed: a thread on another core, or a stream of the GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from traces.capture.cores import claim_core

SIDE_CORE = 1
QUEUED = 64
"""Calls that a side stream is kept ahead by."""


@contextmanager
def beside(work: Callable[[], object] | None, device: torch.device) -> Iterator[None]:
    """Keep `work` going while the block runs; None: nothing runs beside it."""
    if work is None:
        yield
        return
    stop = threading.Event()
    started = threading.Event()
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def loop() -> None:
        if stream is None:
            claim_core(SIDE_CORE)
        with torch.inference_mode():
            while not stop.is_set():
                _round(work, stream)
                started.set()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        started.wait()
        yield
    finally:
        stop.set()
        thread.join()


def _round(work: Callable[[], object], stream: torch.cuda.Stream | None) -> None:
    """A call on the core of this thread, or as many as fill the stream for a while."""
    if stream is None:
        work()
        return
    with torch.cuda.stream(stream):
        for _ in range(QUEUED):
            work()
    stream.synchronize()
