"""Figures of a validation: predicted against measured times of one operation, and errors of many at a glance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from scenarios.files import whole_file
from sim.figure import STYLE, WIDTH_IN, Figure, png_bytes

Times = NDArray[np.float64]
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
SHOWN_POINTS = 4000
FEW_POINTS = 200  # up to which points are drawn larger
NARROW_RATIO = 20.0  # of the ends of an axis that may show one decade, or none


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Measured and predicted times of one operation, float64[row] [s]; kinds str[row] tell rows apart by colour."""

    title: str
    kinds: NDArray[np.str_]
    measured_s: Times
    predicted_s: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """One row of an overview: errors as fractions, and the goal of the median where there is one."""

    name: str
    median: float
    mean: float
    p90: float
    goal: float | None


def accuracy_figure(points: Points) -> Figure:
    """Predicted against measured time, and the error by measured time: median, and the span of four rows in five."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(points.title, fontsize=8.5, fontweight="bold", x=0.01, ha="left")
        for color, kind in zip(COLORS, np.unique(points.kinds).tolist(), strict=False):
            rows = np.flatnonzero(points.kinds == kind)
            shown = rows[np.linspace(0, len(rows) - 1, min(len(rows), SHOWN_POINTS)).astype(np.int64)]
            _scatter(left, points.measured_s[shown], points.predicted_s[shown], color, kind)
            _error_by_size(right, points.measured_s[rows], points.predicted_s[rows], color)
        _diagonal(left, points)
        right.axhline(0, color="#444444", lw=0.6)
        _log_ticks(left, "xy")
        right.set_xscale("log")
        _log_ticks(right, "x")
        right.set_ylim(-60, 100)
        right.set_xlabel("measured time (µs)")
        right.set_ylabel("predicted over measured, minus one (%)")
        right.grid(True)
        if len(np.unique(points.kinds)) > 1:
            left.legend(loc="upper left", markerscale=1 if len(points.kinds) <= FEW_POINTS else 3)
    return figure


def overview_figure(rows: Sequence[ErrorRow], title: str) -> Figure:
    """Median error of every operation as a dot, mean as a ring, a line to the 90th percentile, the goal as a tick."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.17 * len(rows) + 1.0), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            axes.plot((100 * row.median, 100 * row.p90), (place, place), color="#9db4cf", lw=1.2, zorder=1)
            axes.plot(100 * row.mean, place, "o", ms=4, mfc="white", mec="#4477aa", zorder=2)
            axes.plot(100 * row.median, place, "o", ms=4, color="#4477aa", zorder=3)
            if row.goal is not None:
                axes.plot(100 * row.goal, place, "|", ms=9, mew=1.6, color="#ee6677", zorder=4)
        axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=6)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, min(100, 105 * max(row.p90 for row in rows)))
        axes.set_xlabel("error (%)")
        what = f"{title}: median (dot), mean (ring), 90th percentile (end of line), goal of the median (red tick)"
        figure.suptitle(what, fontsize=8, fontweight="bold", x=0.01, ha="left")
        axes.grid(axis="x")
    return figure


def write_accuracy(points: Sequence[Points], folder: Path) -> list[Path]:
    """One PNG an operation, numbered; their paths."""
    paths = []
    for number, one in enumerate(points, 1):
        name = re.sub(r"[^a-z0-9]+", "-", one.title.partition("(")[0].lower()).strip("-")
        paths.append(folder / f"accuracy-{number}-{name}.png")
        _write(accuracy_figure(one), paths[-1])
    return paths


def write_overview(rows: Sequence[ErrorRow], title: str, path: Path) -> None:
    """The overview as PNG."""
    _write(overview_figure(rows, title), path)


def _write(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(png_bytes(figure))


def _scatter(axes: Axes, measured_s: Times, predicted_s: Times, color: str, kind: str) -> None:
    few = len(measured_s) <= FEW_POINTS
    size, alpha = (9.0, 0.8) if few else (1.5, 0.5)
    axes.scatter(1e6 * measured_s, 1e6 * predicted_s, s=size, lw=0, alpha=alpha, color=color, label=kind or None)


def _diagonal(axes: Axes, points: Points) -> None:
    ends = 1e6 * np.array([points.measured_s.min(), points.measured_s.max()])
    axes.plot(ends, ends, color="#222222", lw=0.7)
    for factor in (0.8, 1.25):
        axes.plot(ends, factor * ends, color="#888888", lw=0.6, ls=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured time (µs)")
    axes.set_ylabel("predicted time (µs); dashed 0.8 and 1.25")
    axes.grid(True)


def _log_ticks(axes: Axes, which: str) -> None:
    """Plain numbers on a logarithmic axis, at its decades or, where it spans about one, inside them, too.

    The style of our figures parses no formulas.
    """
    for axis in (axes.xaxis,) if which == "x" else (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if high < NARROW_RATIO * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())


def _error_by_size(axes: Axes, measured_s: Times, predicted_s: Times, color: str) -> None:
    """Median and span from p10 to p90 of the relative error, over up to 16 bins of equal ratio."""
    error = 100 * (predicted_s / measured_s - 1)
    edges = np.geomspace(measured_s.min(), measured_s.max() * (1 + 1e-9), 17)
    bins = np.digitize(measured_s, edges)
    filled = [number for number in np.unique(bins).tolist() if (bins == number).sum() >= 5]
    if not filled:
        return
    centre = [1e6 * float(np.median(measured_s[bins == number])) for number in filled]
    low, middle, high = np.array([np.quantile(error[bins == number], [0.1, 0.5, 0.9]) for number in filled]).T
    axes.fill_between(centre, low, high, color=color, alpha=0.15, lw=0)
    axes.plot(centre, middle, color=color, lw=1.2)
