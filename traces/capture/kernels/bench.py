"""What all families of kernels share: the device that is measured, rotating inputs, rows of tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from traces.capture.clock import Clock, GraphClock, Limits, Timing, Work, clock_of, measure

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point: the columns that say what it is, and the measurement, which makes its inputs and frees them."""

    shape: Row
    measure: Callable[[], Row]


MOST_COPIES = 64
PATTERN = 65_521  # values; a prime, so that rows of weights differ
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LONG_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
"""Names of data types in tables of timings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A device under measurement.

    cache_bytes  its last cache; inputs rotate through twice as much, so that none is read from there.
    clock        of eager calls; graph_clock of calls inside a CUDA graph, None on a CPU.
    limits       of one point.
    """

    device: torch.device
    cache_bytes: int
    clock: Clock
    graph_clock: Clock | None = None
    limits: Limits = Limits()  # noqa: RUF009  frozen

    def time(self, work: Work, *, graph: bool = False) -> Timing:
        """Time of a call; with `graph`, inside a CUDA graph where there are any."""
        clock = self.graph_clock if graph and self.graph_clock is not None else self.clock
        with torch.inference_mode():
            return measure(work, clock, self.limits)

    def copies_of(self, n_bytes: float) -> int:
        """Copies of an input of this size that rotate: enough to exceed the cache twice, 2 to MOST_COPIES."""
        return int(min(max(2 * self.cache_bytes // max(n_bytes, 1) + 1, 2), MOST_COPIES))

    def randn(self, *shape: int, dtype: str = "fp32") -> torch.Tensor:
        """Normal values on the device, small enough that products stay finite; large tensors repeat PATTERN of them."""
        size = math.prod(shape)
        pattern = torch.randn(min(size, PATTERN)).mul_(0.05).to(self.device, DTYPES[dtype])
        return pattern.repeat(-(-size // len(pattern)))[:size].view(shape)


def bench_of(device: torch.device, cache_bytes: int) -> Bench:
    """The bench of a device."""
    graphs = None if device.type == "cpu" else GraphClock()
    return Bench(device=device, cache_bytes=cache_bytes, clock=clock_of(device), graph_clock=graphs)


def timed(timing: Timing) -> Row:
    """Columns of a measured time, in ms."""
    return {
        "latency": f"{timing.median_s * 1e3:.6g}",
        "p10": f"{timing.p10_s * 1e3:.6g}",
        "p90": f"{timing.p90_s * 1e3:.6g}",
        "repeats": timing.repeats,
        "disturbed": int(timing.disturbed),
    }
