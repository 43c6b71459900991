"""Routed experts that are stored in several widths: bytes of their weights, and the kernels that multiply them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwmodels.moe import ExpertShape
from scenarios.models import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """One width: bits of a weight as a budget counts them, and its bytes, scales included.

    dtype      data type whose kernel law multiplies the expert, reading `value_bytes` for every weight.
    time_frac  measured time of the expert's kernel over that of `dtype`, which then reads all bytes of that type;
               None: none was measured, and the law alone says.
    source     where time_frac comes from.
    """

    bits: float
    value_bytes: float
    dtype: DType
    time_frac: float | None = None
    source: str = ""

    def stored(self, shape: ExpertShape) -> ExpertShape:
        """The expert with the bytes of this width, multiplied by the law of `dtype`."""
        return replace(shape, weight_dtype=self.dtype, value_bytes=self.value_bytes)

    def multiplied(self, shape: ExpertShape) -> tuple[ExpertShape, float]:
        """The expert as the law of the device's kernel sees it, and what its time is multiplied with."""
        if self.time_frac is None:
            return self.stored(shape), 1.0
        return replace(shape, weight_dtype=self.dtype, value_bytes=None), self.time_frac


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWidths:
    """The width of every expert: `widths[index[MoE layer, expert]]`; index is intp[MoE layer, expert]."""

    widths: tuple[Width, ...]
    index: NDArray[np.intp]

    @property
    def value_bytes(self) -> NDArray[np.float64]:
        """Bytes of a weight, float64[MoE layer, expert]."""
        return np.array([width.value_bytes for width in self.widths])[self.index]

    @property
    def mean_bits(self) -> float:
        """Mean bits of a weight over all experts."""
        return float(np.array([width.bits for width in self.widths])[self.index].mean())

    def used(self) -> Iterator[tuple[Width, NDArray[np.bool_]]]:
        """Every width that an expert has, with bool[MoE layer, expert]: whose."""
        for number, width in enumerate(self.widths):
            if (own := self.index == number).any():
                yield width, own
