"""How times that overlap add up: smooth maxima, and work that starts slowly. Exact when all times double."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Times = NDArray[np.float64]


def norm2(first_s: ArrayLike, second_s: ArrayLike) -> Times:
    """Time of two parts that overlap for the most part: float64[...] [s]; T = sqrt(x^2 + y^2)."""
    first, second = np.asarray(first_s, dtype=np.float64), np.asarray(second_s, dtype=np.float64)
    return np.sqrt(first * first + second * second)


def norm4(*parts_s: ArrayLike) -> Times:
    """Time of parts that overlap almost wholly: float64[...] [s]; T = (x^4 + y^4 + ...)^(1/4), by two roots."""
    total: Times = np.asarray(0.0)
    for part_s in parts_s:
        squared = np.square(np.asarray(part_s, dtype=np.float64))
        total = total + squared * squared
    return np.sqrt(np.sqrt(total))


def slow_start_s(work_s: ArrayLike, warm_up_s: float, gain: float) -> Times:
    """Time of work that proceeds slower at first: float64[...] [s].

    T = t + R (1 - exp(-gain t / R)): small work takes (1 + gain) times its own time, large work R = `warm_up_s` more.
    """
    work = np.asarray(work_s, dtype=np.float64)
    if warm_up_s == 0:
        return work
    return work - warm_up_s * np.expm1(-gain * work / warm_up_s)
