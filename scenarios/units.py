"""Quantities with units: parsed once here, plain SI floats and integer bytes everywhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SMALL = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3}


def _prefixed(unit: str, prefixes: Mapping[str, float]) -> dict[str, float]:
    return {prefix + unit: factor for prefix, factor in prefixes.items()}


_BYTES = _prefixed("B", _DECIMAL) | _prefixed("B", _BINARY)
_BITS_PER_S = {unit: factor / 8 for unit, factor in _prefixed("b/s", _DECIMAL).items()}

UNITS: dict[str, dict[str, float]] = {
    "time": {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "a": 31_557_600.0} | _prefixed("s", _SMALL),
    "bytes": _BYTES,
    "bandwidth": {f"{unit}/s": factor for unit, factor in _BYTES.items()} | _BITS_PER_S,
    "compute": _prefixed("FLOP/s", _DECIMAL) | _prefixed("OP/s", _DECIMAL),
    "power": _prefixed("W", _DECIMAL) | {"mW": 1e-3},
    "energy": {"J": 1.0, "Wh": 3600.0, "kWh": 3.6e6} | _prefixed("J", _SMALL) | {"pJ": 1e-12},
    "frequency": _prefixed("Hz", _DECIMAL),
    "money": {"USD": 1.0, "kUSD": 1e3, "MUSD": 1e6},
    "energy price": {"USD/kWh": 1 / 3.6e6, "USD/MWh": 1 / 3.6e9},
}
_EXAMPLE = {
    "time": "3 us",
    "bytes": "80 GiB",
    "bandwidth": "900 GB/s",
    "compute": "989 TFLOP/s",
    "power": "700 W",
    "energy": "4 pJ",
    "frequency": "1.98 GHz",
    "money": "25 kUSD",
    "energy price": "0.1 USD/kWh",
}
SMALLEST, LARGEST = 1e-30, 1e30  # beyond these, times overflow or vanish
_QUANTITY = re.compile(r"^\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\s\d].*?)?\s*$")


def parse_quantity(text: object, dimension: str) -> float:
    """Value of `text` ("900 GB/s") in SI units (seconds, bytes, bytes/s, FLOP/s, W, J, Hz, USD).

    Raises ValueError when the unit is missing, unknown, of another dimension, or the number is not finite.
    """
    example = _EXAMPLE[dimension]
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"expected a quantity such as '{example}', got {text!r}")
    match = _QUANTITY.match(str(text))
    if match is None:
        raise ValueError(f"'{text}' is not a quantity; write a number and a unit, such as '{example}'")
    number, unit = float(match[1]), (match[2] or "")
    if not unit:
        raise ValueError(f"{text} has no unit; write for instance '{example}'")
    factor = UNITS[dimension].get(unit)
    if factor is None:
        raise ValueError(_unknown_unit(unit, dimension))
    if not math.isfinite(number * factor):
        raise ValueError(f"'{text}' is not finite")
    return number * factor


def _unknown_unit(unit: str, dimension: str) -> str:
    elsewhere = [name for name, units in UNITS.items() if unit in units]
    if elsewhere:
        return f"unit '{unit}' measures {elsewhere[0]}, not {dimension}; write for instance '{_EXAMPLE[dimension]}'"
    spelled = unit.replace("bps", "b/s").replace("Bps", "B/s")
    folded = spelled.lower().replace("flops", "flop/s")
    near = [spelled] if spelled in UNITS[dimension] else [one for one in UNITS[dimension] if one.lower() == folded]
    hint = " or ".join(f"'{one}'" for one in near)
    remedy = f" (did you mean {hint}?)" if hint else f"; write for instance '{_EXAMPLE[dimension]}'"
    return f"unknown unit '{unit}' of {dimension}{remedy}"


def _quantity(dimension: str, *, positive: bool = True) -> Callable[[object], float]:
    def validate(value: object) -> float:
        number = parse_quantity(value, dimension)
        if number < 0 or (positive and number == 0):
            raise ValueError(f"'{value}' must be {'positive' if positive else 'zero or more'}")
        if number and not SMALLEST <= number <= LARGEST:
            raise ValueError(
                f"'{value}' is beyond any machine ({SMALLEST:g} to {LARGEST:g} SI units); check its exponent"
            )
        return number

    return validate


def _schema(dimension: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"type": "string", "examples": [_EXAMPLE[dimension]], "description": f"{dimension} with unit"}
    )


Seconds = Annotated[float, BeforeValidator(_quantity("time", positive=False)), _schema("time")]
Bytes = Annotated[float, BeforeValidator(_quantity("bytes", positive=False)), _schema("bytes")]
BytesPerS = Annotated[float, BeforeValidator(_quantity("bandwidth")), _schema("bandwidth")]
FlopPerS = Annotated[float, BeforeValidator(_quantity("compute")), _schema("compute")]
Watts = Annotated[float, BeforeValidator(_quantity("power")), _schema("power")]
Joules = Annotated[float, BeforeValidator(_quantity("energy", positive=False)), _schema("energy")]
Hertz = Annotated[float, BeforeValidator(_quantity("frequency")), _schema("frequency")]
DollarsPerJ = Annotated[float, BeforeValidator(_quantity("energy price", positive=False)), _schema("energy price")]
Dollars = Annotated[float, BeforeValidator(_quantity("money", positive=False)), _schema("money")]
