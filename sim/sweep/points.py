"""Axes of a sweep and their points: every combination, axes that advance together, or a random choice of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from scenarios.errors import ScenarioError
from scenarios.seeds import Use, generator

MOST_POINTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Axis:
    """A path of the scenario and the values that it takes, as text."""

    path: str
    values: tuple[str, ...]


Point = tuple[tuple[str, str], ...]
"""(path, value) of every axis."""


def parse_axis(option: str) -> Axis:
    """The axis of `path=a,b,c`; commas inside brackets, braces and quotes belong to a value.

    Raises ScenarioError where there is no path, or a value is empty.
    """
    path, equals, text = option.partition("=")
    values = tuple(value.strip() for value in _split(text))
    if not equals or not path or not all(values):
        raise ScenarioError(f"'{option}' is no axis: expected PATH=A,B,C, such as cluster.nodes=1,2,4")
    return Axis(path, values)


def _split(text: str) -> list[str]:
    parts, depth, quote, begin = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        if letter == "," and depth == 0 and not quote:
            parts.append(text[begin:place])
            begin = place + 1
    return [*parts, text[begin:]]


def points_of(axes: Sequence[Axis], zipped: Sequence[Axis], n_random: int | None, seed: int) -> list[Point]:
    """Every combination of the axes; the zipped ones advance together. With `n_random` so many, drawn by `seed`.

    Raises ScenarioError where there is no axis, a path stands twice, or zipped axes differ in length.
    """
    paths = [axis.path for axis in (*axes, *zipped)]
    if not paths:
        raise ScenarioError("a sweep needs an axis: --set cluster.nodes=1,2,4")
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise ScenarioError(f"{', '.join(twice)}: two axes of one path; give all values in one")
    lengths = {axis.path: len(axis.values) for axis in zipped}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{path} has {n}" for path, n in lengths.items())
        raise ScenarioError(f"axes of --zip advance together and need equally many values: {told}")
    groups: list[list[Point]] = [[((axis.path, value),) for value in axis.values] for axis in axes]
    if zipped:
        rows = zip(*(axis.values for axis in zipped), strict=True)
        groups.append([tuple(zip(lengths, row, strict=True)) for row in rows])
    n_points = int(np.prod([len(group) for group in groups], dtype=object))
    if n_points > MOST_POINTS and n_random is None:
        raise ScenarioError(f"{n_points:,} points are too many; give --random {MOST_POINTS} or fewer values")
    if n_points >= 1 << 63:
        raise ScenarioError(f"{n_points:.3g} points are too many to draw from; give fewer values")
    if n_random is None or n_random >= n_points:
        return [_joined(parts) for parts in product(*groups)]
    rng = generator(seed, Use.SWEEP_POINTS)
    chosen: set[int] = set()
    while len(chosen) < n_random:
        chosen |= set(rng.integers(0, n_points, n_random - len(chosen)).tolist())
    return [_joined(_combination(groups, number)) for number in sorted(chosen)]


def _combination(groups: Sequence[Sequence[Point]], number: int) -> list[Point]:
    """The combination of that number, in the order of `product`."""
    parts: list[Point] = []
    for group in reversed(groups):
        number, place = divmod(number, len(group))
        parts.insert(0, group[place])
    return parts


def _joined(parts: Sequence[Point] | tuple[Any, ...]) -> Point:
    return tuple(pair for part in parts for pair in part)


def overrides_of(point: Point) -> list[str]:
    """The point as `--set` overrides: whole sections first, keys inside them after."""
    return [f"{path}={value}" for path, value in sorted(point, key=lambda pair: pair[0].count("."))]
