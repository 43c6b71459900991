"""Whether anything else ran on the machine while something was measured; what was disturbed is measured again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ATTEMPTS = 2
OTHERS_FRAC = 0.05
"""Processor time of others, over the time that passed, up to which a measurement counts as undisturbed."""
Taken = TypeVar("Taken")


def quietly(measure: Callable[[], Taken]) -> tuple[Taken, float]:
    """What `measure` returns, and the share of one core that others took meanwhile; the quietest of two tries."""
    best: tuple[Taken, float] | None = None
    for _ in range(ATTEMPTS):
        before = Load.now()
        taken = measure()
        share = Load.now().others_since(before)
        if best is None or share < best[1]:
            best = taken, share
        if share <= OTHERS_FRAC:
            break
    if best is None:
        raise RuntimeError("ATTEMPTS must be positive")
    return best


@dataclass(frozen=True, slots=True)
class Load:
    """Processor time [s] of the whole machine, with what the host of a virtual one stole; ours; and the clock."""

    all_s: float
    own_s: float
    clock_s: float

    @classmethod
    def now(cls) -> Load:
        """At this moment; 0 for the machine where Linux's /proc is missing."""
        own = os.times()
        try:
            ticks = [int(text) for text in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
        except OSError:
            return cls(0.0, 0.0, time.perf_counter())
        user, nice, system, _, _, irq, softirq, steal = ticks
        busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return cls(busy_s, own.user + own.system, time.perf_counter())

    def others_since(self, before: Load) -> float:
        """Share of one core that others took since `before`; clock ticks make it coarse below a second."""
        others_s = (self.all_s - before.all_s) - (self.own_s - before.own_s)
        return max(others_s, 0.0) / (self.clock_s - before.clock_s)
