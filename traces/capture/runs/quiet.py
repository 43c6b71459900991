"""Whether anything else ran on the machine while something was measured; what was disturbed is measured again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from traces.capture.clock import Watch

ATTEMPTS = 2
OTHERS_FRAC = 0.05
"""Processor time of others, over the time that passed, up to which a measurement counts as undisturbed."""
Taken = TypeVar("Taken")


def quietly(measure: Callable[[], Taken]) -> tuple[Taken, float]:
    """What `measure` returns, and the share of one core that others took meanwhile; the quietest of two tries."""
    best: tuple[Taken, float] | None = None
    for _ in range(ATTEMPTS):
        watch = Watch()
        taken = measure()
        share = watch.others_frac()
        if best is None or share < best[1]:
            best = taken, share
        if share <= OTHERS_FRAC:
            break
    if best is None:
        raise RuntimeError("ATTEMPTS must be positive")
    return best
