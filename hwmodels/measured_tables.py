"""Measured tables beside the laws: what a law is off by on measured shapes, interpolated between the rows of a shape.

    T(x) = law(x) * exp(interpolated log(measured / law))

The law carries a balanced row over to skewed tokens and a whole prompt to a chunk; what is interpolated is small and
smooth. Shapes that no table holds are the law's alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Times = NDArray[np.float64]
Shape = tuple[float, ...]
"""What does not vary between the rows of a surface; of which numbers is said by the `*_shape` functions below."""

LARGEST_STEP = np.log(2.0) + 1e-9
"""Furthest that a correction is carried beyond the measured lines, in log: a factor of two; see `Surface.covers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """log(measured / law) of one shape over two coordinates: lines of measured points, in ascending order.

    lines  float64[line]: first coordinate.   points, logs  for each line float64[point]: second coordinate, value.
    """

    lines: Times
    points: tuple[Times, ...]
    logs: tuple[Times, ...]

    @property
    def n_points(self) -> int:
        """Points of all lines."""
        return sum(len(points) for points in self.points)

    def at(self, line: ArrayLike, point: ArrayLike) -> Times:
        """Interpolated value: float64[...]; `line` and `point` broadcast.

        Along the two measured lines beside `line`, then between them, linearly each; beyond the first and last line,
        and the first and last point of a line, the nearest counts. Exact at measured points.
        """
        where, along = np.broadcast_arrays(np.asarray(line, np.float64), np.asarray(point, np.float64))
        last = len(self.lines) - 1
        below = np.clip(np.searchsorted(self.lines, where, side="right") - 1, 0, last)
        above = np.minimum(below + 1, last)
        gap = np.where(above > below, self.lines[above] - self.lines[below], 1.0)
        weight = np.clip((where - self.lines[below]) / gap, 0.0, 1.0)
        value = np.zeros(where.shape)
        for number, (points, logs) in enumerate(zip(self.points, self.logs, strict=True)):
            share = np.where(below == number, 1 - weight, 0.0) + np.where(above == number, weight, 0.0)
            if share.any():
                value += share * np.interp(along, points, logs)
        return value

    def covers(self, line: ArrayLike) -> NDArray[np.bool_]:
        """Whether `line` is at most a factor of two beyond the measured lines: bool[...]."""
        where = np.asarray(line, np.float64)
        covered: NDArray[np.bool_] = (where >= self.lines[0] - LARGEST_STEP) & (where <= self.lines[-1] + LARGEST_STEP)
        return covered

    def left_out(self) -> Times:
        """Value less its interpolation between the neighbours on its line, of every inner point: float64[n]."""
        errors = [_left_out(points, logs) for points, logs in zip(self.points, self.logs, strict=True)]
        return np.concatenate(errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredBlock:
    """Surfaces of one operation and data type by shape, with the files and rows that they were made of.

    band  ends of the 80 % band of measured over interpolated time (`band_left_out`).
    """

    files: tuple[str, ...]
    n_rows: int
    surfaces: Mapping[Shape, Surface]
    band: tuple[float, float] | None

    def times(self, factor: float) -> MeasuredBlock:
        """Corrections multiplied with a factor."""
        log = float(np.log(factor))
        moved = {
            shape: replace(surface, logs=tuple(logs + log for logs in surface.logs))
            for shape, surface in self.surfaces.items()
        }
        return replace(self, surfaces=moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the tables of a kernel card hold: (operation, data type) -> surfaces."""

    blocks: Mapping[tuple[str, str], MeasuredBlock] = field(default_factory=dict)

    def factor(
        self, block: str, dtype: str, shape: Shape, line: ArrayLike, point: ArrayLike, *, near: bool = False
    ) -> Times | float:
        """What the law's time is multiplied with: float64[...], or 1 where no table holds the shape.

        near  beyond a factor of two of the measured lines the law is alone, too.
        """
        surface = self.find(block, dtype, shape)
        if surface is None:
            return 1.0
        factor: Times = np.exp(surface.at(line, point))
        return np.where(surface.covers(line), factor, 1.0) if near else factor

    def find(self, block: str, dtype: str, shape: Shape) -> Surface | None:
        """The surface of a shape; None where no table holds it."""
        held = self.blocks.get((block, dtype))
        return None if held is None else held.surfaces.get(shape)

    def low_high(self, block: str, dtype: str, shape: Shape) -> tuple[float, float] | None:
        """Ends of the 80 % band of corrected times of a shape, that of its whole operation; None: the law's counts."""
        held = self.blocks.get((block, dtype))
        return None if held is None or shape not in held.surfaces else held.band

    def times(self, factors: Mapping[tuple[str, str], float]) -> Measured:
        """Tables whose corrections are multiplied with a factor by (operation, data type); others stay."""
        return Measured(blocks={key: held.times(factors.get(key, 1.0)) for key, held in self.blocks.items()})


NOTHING = Measured()
"""Of cards without tables."""


def moe_shape(hidden: ArrayLike, intermediate: ArrayLike, gated: bool) -> Shape:
    """Of routed experts; lines are log expert slots of the device, points log routed tokens of a slot."""
    return (float(np.asarray(hidden)), float(np.asarray(intermediate)), float(gated))


def gemm_shape(n: ArrayLike, k: ArrayLike) -> Shape:
    """Of dense products; a line for even and one for uneven rows (`uneven`), points are log rows."""
    return (float(np.asarray(n)), float(np.asarray(k)))


def head_key(heads: ArrayLike, kv_heads: ArrayLike, head_dim: ArrayLike, window: float) -> Shape:
    """Of attention with KV heads; `window` is infinite where it clips no context.

    Lines are log requests, points log of their mean context (decode) or length (prefill).
    """
    return (*(float(np.asarray(size)) for size in (heads, kv_heads, head_dim)), float(window))


def latent_key(heads: ArrayLike, cache_dim: float, latent_dim: float) -> Shape:
    """Of MLA; lines and points as of `head_key`."""
    return (float(np.asarray(heads)), float(cache_dim), float(latent_dim))


def log_of(amount: ArrayLike) -> Times:
    """Coordinate of an amount: its log, and that of one where nothing is: float64[...]."""
    values = np.asarray(amount, np.float64)
    logs: Times = np.log(np.where(values > 0, values, 1.0))
    return logs


def uneven(rows: ArrayLike) -> Times:
    """1 where a number of rows is no multiple of 4, which some kernels have to pad, else 0: float64[...]."""
    return np.asarray(np.asarray(rows) % 4 != 0, np.float64)


def surface_of(line: Times, point: Times, logs: Times) -> Surface:
    """The surface through points float64[n]; several values of one point are averaged."""
    places, number = np.unique(np.stack([line, point], axis=1), axis=0, return_inverse=True)
    number = number.ravel()
    mean = np.bincount(number, weights=logs) / np.bincount(number)
    lines = np.unique(places[:, 0])
    on_line = [places[:, 0] == value for value in lines]
    return Surface(lines=lines, points=tuple(places[on, 1] for on in on_line), logs=tuple(mean[on] for on in on_line))


def band_left_out(surfaces: Iterable[Surface]) -> tuple[float, float] | None:
    """Ends of the 80 % band of measured time over that interpolated without it; None where no point has neighbours.

    One point after the other is left out of its line, save the ends; the ranks are those of `calibration.fit.band_of`.
    """
    errors = np.concatenate([surface.left_out() for surface in surfaces])
    if not len(errors):
        return None
    low, high = np.exp(np.quantile(errors, [0.1, 0.9], method="weibull")).tolist()
    return low, high


def _left_out(points: Times, logs: Times) -> Times:
    if len(points) < 3:
        return np.empty(0)
    weight = (points[1:-1] - points[:-2]) / (points[2:] - points[:-2])
    errors: Times = logs[1:-1] - ((1 - weight) * logs[:-2] + weight * logs[2:])
    return errors
