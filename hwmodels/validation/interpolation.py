"""How well a measured table predicts the points between its rows: half of them left out, against the law alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.calibrate import main_kernels, problems_of
from hwmodels.calibration.shipped import SHIPPED
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.measured_rows import surfaces_of
from hwmodels.measured_tables import Surface, Times
from hwmodels.validation.goals import Progress
from hwmodels.validation.score import Label, Score, score
from hwmodels.validation.timings import Timings, read_timings

INTERPOLATED, LAW = "interpolated", "by the law"
ONE_LINE = ("moe", "gemm")  # each number of slots, and uneven rows, are judged as surfaces of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Points that a thinned surface did not have: log(measured / law) float64[n], and what it says there."""

    logs: Times
    interpolated: Times


def score_interpolation(folder: Path, progress: Progress) -> list[Score]:
    """Scores of every shipped table: for each operation and data type interpolation and law, on the same rows."""
    every = [(shipped, table) for shipped in SHIPPED for table in shipped.tables if table.find(folder) is not None]
    scores: list[Score] = []
    for number, (shipped, table) in enumerate(every):
        progress(f"{shipped.name}: {table.name}", number / len(every))
        device = Device(card=find_device(shipped.device), kernels=find_kernels(shipped.name))
        scores += table_scores(read_timings(table.path(folder)), device, table.name)
    return scores


def table_scores(timings: Timings, device: Device, name: str) -> list[Score]:
    """The scores of one table, in pairs; none for data types whose shapes have no point between others.

    Of experts also those of numbers of slots left out between others.
    """
    problems, reasons = problems_of(timings, device)
    scores: list[Score] = []
    for problem in main_kernels(problems, timings, reasons):
        label = (str(timings.source[problem.rows[0]]), name, device.card.name, device.kernels.name)
        base = f"{problem.block} {problem.dtype}"
        surfaces = list(surfaces_of(problem, timings, device).values())
        single = [line for surface in surfaces for line in _single_lines(surface)]
        parts = [thinned(surface)[1] for surface in (single if problem.block in ONE_LINE else surfaces)]
        scores += _scores(parts, f"{base} {INTERPOLATED}", f"{base} {LAW}", label)
        if problem.block == "moe":
            lines = [part for surface in surfaces for part in without_lines(surface)]
            scores += _scores(lines, f"{base} other slots", f"{base} other slots {LAW}", label)
    return scores


def _scores(parts: list[LeftOut], interpolated: str, law: str, label: Label) -> list[Score]:
    """Scores of interpolation and of the law on the points left out, under these names; none without points."""
    logs = np.concatenate([part.logs for part in parts]) if parts else np.empty(0)
    if not len(logs):
        return []
    found = np.concatenate([part.interpolated for part in parts])
    return [
        score(interpolated, "unseen rows", label, np.exp(found), np.exp(logs)),
        score(law, "card", label, np.ones_like(logs), np.exp(logs)),
    ]


def thinned(surface: Surface) -> tuple[Surface, LeftOut]:
    """The surface without every other line and every other point of a line, and the points so left out; ends stay."""
    lines = _kept(len(surface.lines))
    points = [_kept(len(points)) for points in surface.points]
    rest = Surface(
        lines=surface.lines[lines],
        points=tuple(surface.points[n][points[n]] for n in np.flatnonzero(lines)),
        logs=tuple(surface.logs[n][points[n]] for n in np.flatnonzero(lines)),
    )
    logs, found = [], []
    for number, line in enumerate(surface.lines):
        out = ~points[number] if lines[number] else _inside(surface, rest, number)
        logs.append(surface.logs[number][out])
        found.append(rest.at(line, surface.points[number][out]))
    return rest, LeftOut(logs=np.concatenate(logs), interpolated=np.concatenate(found))


def without_lines(surface: Surface) -> list[LeftOut]:
    """Every inner line of a surface and what the others say of its points."""
    parts = []
    for number in range(1, len(surface.lines) - 1):
        others = [n for n in range(len(surface.lines)) if n != number]
        rest = Surface(
            lines=surface.lines[others],
            points=tuple(surface.points[n] for n in others),
            logs=tuple(surface.logs[n] for n in others),
        )
        found = rest.at(surface.lines[number], surface.points[number])
        parts.append(LeftOut(logs=surface.logs[number], interpolated=found))
    return parts


def _single_lines(surface: Surface) -> list[Surface]:
    return [
        Surface(lines=surface.lines[n : n + 1], points=(points,), logs=(logs,))
        for n, (points, logs) in enumerate(zip(surface.points, surface.logs, strict=True))
    ]


def _kept(count: int) -> NDArray[np.bool_]:
    """Every other place from the first, and the last."""
    kept: NDArray[np.bool_] = np.arange(count) % 2 == 0
    kept[-1:] = True
    return kept


def _inside(surface: Surface, rest: Surface, number: int) -> NDArray[np.bool_]:
    """Points of a line left out that both kept lines beside it span: bool[point]."""
    above = int(np.searchsorted(rest.lines, surface.lines[number]))
    first = max(float(rest.points[n][0]) for n in (above - 1, above))
    last = min(float(rest.points[n][-1]) for n in (above - 1, above))
    inside: NDArray[np.bool_] = (surface.points[number] >= first) & (surface.points[number] <= last)
    return inside
