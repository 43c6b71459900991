"""Published numbers with their units: `189.1 ms`, `33.7 %`, `1.51`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from scenarios.units import UNITS

COUNTED = {"%": 0.01, "x": 1.0, "tokens/s": 1.0, "samples/s": 1.0, "parameters": 1.0, "tokens": 1.0, "hops": 1.0}
"""Units of papers beside the physical ones, and what one of them is."""
RATIO_UNITS = ("", "x")
SHARE_UNIT = "%"
_FACTORS = {unit: factor for units in UNITS.values() for unit, factor in units.items()} | COUNTED
_NUMBER = re.compile(r"^\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A number as printed, its unit, and how many SI units one of that unit is."""

    number: float
    unit: str
    factor: float

    @property
    def value(self) -> float:
        """The number in SI units; of a percentage the share (0-1)."""
        return self.number * self.factor

    def written(self, number: float) -> str | float:
        """Another number of the same unit as a scenario writes it."""
        return f"{number!r} {self.unit}" if self.unit else number


def rounded(text: str) -> str:
    """The number of `text` with four digits, and its unit."""
    number, _, unit = text.partition(" ")
    return f"{float(number):.4g} {unit}".strip()


def read_published(text: float | str) -> Published:
    """The number and unit of `text`. Raises ValueError where it is none, or the unit is unknown."""
    match = _NUMBER.match(str(text)) if not isinstance(text, bool) else None
    if match is None or not math.isfinite(float(match[1])):
        raise ValueError(f"'{text}' is not a number with a unit, such as 189.1 ms, 33.7 % or 1.51")
    unit = match[2]
    if unit and unit not in _FACTORS:
        raise ValueError(f"'{text}': unknown unit '{unit}'; known are those of scenarios and {', '.join(COUNTED)}")
    return Published(number=float(match[1]), unit=unit, factor=_FACTORS[unit] if unit else 1.0)
