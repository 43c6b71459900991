"""What happened to the devices of a served load: changes, and which devices were held when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, kw_only=True)
class Change:
    """A reconfiguration or a failure, from `at_s` to `ready_s`, when the engine goes on as it is then.

    kind        the method, or `failure`; takes_s: how long it takes, at a failure as long as nothing is served.
    downtime_s  time without any iteration; moved_bytes: by class of link (`intra`, `inter`), or `host` or `disk`.
    peak_bytes  device -> most bytes that it held meanwhile; total_bytes: most that all held at once.
    lost_tokens tokens of KV caches that were lost, to be computed again.
    """

    kind: str
    at_s: float
    n_before: int
    n_after: int
    ready_s: float = np.nan
    takes_s: float = 0.0
    downtime_s: float = 0.0
    moved_bytes: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[int, float] = field(default_factory=dict)
    total_bytes: float = 0.0
    lost_tokens: int = 0

    @property
    def stopped_s(self) -> float:
        """When its downtime began [s]."""
        return self.at_s if np.isnan(self.ready_s) else self.ready_s - self.downtime_s

    def as_json(self) -> dict[str, Any]:
        """Its numbers, as result.json holds them."""
        return {
            "kind": self.kind,
            "at_s": self.at_s,
            "ready_s": None if np.isnan(self.ready_s) else self.ready_s,
            "takes_s": self.takes_s,
            "downtime_s": self.downtime_s,
            "devices": [self.n_before, self.n_after],
            "moved_bytes": dict(self.moved_bytes),
            "peak_bytes": {"device": max(self.peak_bytes.values(), default=0.0), "all": self.total_bytes},
            "lost_tokens": self.lost_tokens,
        }


@dataclass(slots=True, kw_only=True)
class Hold:
    """Devices that an engine held from one time to another."""

    devices: tuple[int, ...]
    begin_s: float
    end_s: float = np.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Changes in order, devices over time, and what a reader must know.

    written_s, written  float64[iteration], int64[iteration] of all engines: tokens of requests that decode, at its end.
    iteration_s         mean time of an iteration.
    """

    changes: tuple[Change, ...]
    holds: tuple[Hold, ...]
    notes: tuple[str, ...] = ()
    n_unfinished: int = 0
    written_s: NDArray[np.float64]
    written: NDArray[np.int64]
    iteration_s: float
    n_iterations: int

    def device_counts(self, end_s: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(times at which the number of held devices changes, devices from then on), up to `end_s`."""
        times = sorted({0.0, *(t for h in self.holds for t in (h.begin_s, h.end_s) if t < end_s)})
        held = [{d for h in self.holds if h.begin_s <= t < h.end_s for d in h.devices} for t in times]
        return np.array(times), np.array([len(devices) for devices in held])

    def device_s(self, end_s: float) -> float:
        """Devices held, integrated over time up to `end_s` [device s]."""
        times, counts = self.device_counts(end_s)
        return float((np.diff(np.append(times, end_s)) * counts).sum())
