"""Columns of a user's table, checked before anything is computed with them; what is wrong raises HardwareError."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import HardwareError

Column = NDArray[np.generic]
LARGEST = 1 << 40  # of sizes and counts of a kernel or message
LARGEST_OF = {"topk": 1 << 10, "num_topk": 1 << 10, "num_experts": 1 << 15, "num_tokens": 1 << 24}
ZERO_TOO = {"step", "sms", "dispatch_sms"}


def numbers(path: Path, name: str, column: Column) -> NDArray[np.float64]:
    """A column of numbers: float64[row]."""
    try:
        return column.astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise HardwareError(f"{path}: column {name} must hold numbers ({str(error)[:200]})") from None


def whole_numbers(path: Path, name: str, column: Column, least: int = 0) -> NDArray[np.int64]:
    """A column of whole numbers from `least` to the most that a column of this name may hold: int64[row]."""
    values, most = numbers(path, name, column), LARGEST_OF.get(name, LARGEST)
    if not ((values == np.floor(values)) & (values >= least) & (values <= most)).all():
        raise HardwareError(f"{path}: column {name} must hold whole numbers from {least} to {most:,}")
    return values.astype(np.int64)


def sizes(path: Path, name: str, column: Column) -> NDArray[np.int64]:
    """A column of sizes or counts, 1 or more except where nothing (no earlier tokens, no SM) has a meaning."""
    return whole_numbers(path, name, column, 0 if name in ZERO_TOO else 1)


def positive(path: Path, name: str, column: Column) -> NDArray[np.float64]:
    """A column of times or rates: float64[row], finite and above 0."""
    values = numbers(path, name, column)
    wrong = ~((values > 1e-15) & (values < 1e15))  # none is beyond; smaller ones vanish in another unit
    if wrong.any():
        row = int(np.argmax(wrong))
        raise HardwareError(f"{path}: row {row} has {name} {values[row]}; times and rates must be positive")
    return values


def words(path: Path, name: str, column: Column) -> NDArray[np.str_]:
    """A column of words: str[row]."""
    try:
        return column.astype(np.str_)
    except ValueError as error:
        raise HardwareError(f"{path}: column {name} must hold words ({str(error)[:200]})") from None
