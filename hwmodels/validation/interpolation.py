"""How well a measured table predicts the points between its rows: half of them left out, against the law alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.calibrate import main_kernels, problems_of
from hwmodels.calibration.problem import Problem
from hwmodels.calibration.shipped import SHIPPED
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.measured import Surface, Times
from hwmodels.measured_rows import surfaces_of
from hwmodels.validation.goals import Progress
from hwmodels.validation.score import Score, score
from hwmodels.validation.timings import Timings, read_timings

INTERPOLATED, LAW = "interpolated", "by the law"
ONE_LINE = ("moe", "gemm")  # each number of slots, and uneven rows, are judged as surfaces of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Points that a thinned surface did not have: log(measured / law) float64[n], and what it says there."""

    logs: Times
    interpolated: Times


def score_interpolation(folder: Path, progress: Progress) -> list[Score]:
    """Two scores for each operation and data type of every shipped table: interpolation and law, on the same rows."""
    every = [(shipped, table) for shipped in SHIPPED for table in shipped.tables if table.find(folder) is not None]
    scores: list[Score] = []
    for number, (shipped, table) in enumerate(every):
        progress(f"{shipped.name}: {table.name}", number / len(every))
        device = Device(card=find_device(shipped.device), kernels=find_kernels(shipped.name))
        scores += table_scores(read_timings(table.path(folder)), device, table.name)
    return scores


def table_scores(timings: Timings, device: Device, name: str) -> list[Score]:
    """The scores of one table; none for data types whose shapes have no point between others."""
    problems, reasons = problems_of(timings, device)
    scores: list[Score] = []
    for problem in main_kernels(problems, timings, reasons):
        left_out = _left_out(problem, timings, device)
        if left_out is None:
            continue
        source = str(timings.source[problem.rows[0]])
        label = (source, name, device.card.name, device.kernels.name)
        measured = np.exp(left_out.logs)
        base = f"{problem.block} {problem.dtype}"
        scores.append(score(f"{base} {INTERPOLATED}", "unseen rows", label, np.exp(left_out.interpolated), measured))
        scores.append(score(f"{base} {LAW}", "card", label, np.ones_like(measured), measured))
    return scores


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


def _left_out(problem: Problem, timings: Timings, device: Device) -> LeftOut | None:
    """The points left out of all shapes of a problem; None where none lies between others."""
    parts = []
    for surface in surfaces_of(problem, timings, device).values():
        for single in _single_lines(surface) if problem.block in ONE_LINE else [surface]:
            parts.append(thinned(single)[1])
    if not any(len(part.logs) for part in parts):
        return None
    return LeftOut(
        logs=np.concatenate([part.logs for part in parts]),
        interpolated=np.concatenate([part.interpolated for part in parts]),
    )


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
