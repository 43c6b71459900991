"""Figure of reproductions: predicted against published numbers, and errors by system."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sim.figure import STYLE, WIDTH_IN, Figure, png_bytes
from sim.reproduce.claims import Reproduction

LIGHTNESS = (0.75, 0.5)  # neighbours differ in lightness, too
FURTHEST = 8.0  # ratio at which the axis of errors ends; what is beyond is drawn there as a triangle


def reproductions_figure(papers: Sequence[Reproduction], limit: float) -> Figure:
    """Left predicted against published, in the units of print; right predicted over published, a row a system.

    The band is `limit` on both sides of 1. Numbers that are 0 are left out, and orders of methods; a limit that
    holds is drawn as met.
    """
    points = {paper.system: _points(paper) for paper in papers}
    points = {system: numbers for system, numbers in points.items() if len(numbers)}
    colors = dict(zip(points, _colors(len(points)), strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, max(2.6, 0.2 * len(points) + 0.7)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for row, (system, numbers) in enumerate(points.items()):
            left.scatter(*numbers.T, s=11, lw=0, alpha=0.75, color=colors[system])
            _strip(right, row, numbers[:, 1] / numbers[:, 0], colors[system])
        _square(left, np.concatenate(list(points.values())), limit)
        _by_system(right, list(points), limit)
    return figure


def reproductions_png(papers: Sequence[Reproduction], limit: float) -> bytes:
    """The figure as PNG."""
    return png_bytes(reproductions_figure(papers, limit))


def _points(paper: Reproduction) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Published and predicted numbers float64[claim, 2] above 0."""
    published = np.array([row.published for row in paper.rows if not row.is_order], np.float64)
    errors = np.array([row.error for row in paper.rows if not row.is_order], np.float64)
    numbers = np.stack([published, published * (1 + errors)], axis=-1)
    return numbers[(numbers > 0).all(axis=1)]


def _colors(count: int) -> list[tuple[float, float, float]]:
    hues = np.linspace(0, 1, count, endpoint=False)
    shades = [LIGHTNESS[place % 2] for place in range(count)]
    return [tuple(mpl.colors.hsv_to_rgb((hue, 0.75, shade))) for hue, shade in zip(hues, shades, strict=True)]


def _strip(axes: Axes, row: int, ratios: np.ndarray[tuple[int], np.dtype[np.float64]], color: object) -> None:
    """Ratios of one system side by side in its row, and their median as a tick."""
    offsets = 0.5 * (np.arange(len(ratios)) % 5 - 2) / 5
    beyond = (ratios > FURTHEST) | (ratios < 1 / FURTHEST)
    shown = np.clip(ratios, 1 / FURTHEST, FURTHEST)
    for some, marker in ((~beyond, "o"), (beyond, "<")):
        axes.scatter(shown[some], (row + offsets)[some], s=11, lw=0, alpha=0.75, color=color, marker=marker)
    middle = float(np.clip(np.median(ratios), 1 / FURTHEST, FURTHEST))
    axes.plot((middle, middle), (row - 0.4, row + 0.4), color="#222222", lw=1.2)


def _square(axes: Axes, numbers: np.ndarray[tuple[int, int], np.dtype[np.float64]], limit: float) -> None:
    ends = np.array([numbers.min() / 1.5, numbers.max() * 1.5])
    axes.plot(ends, ends, color="#222222", lw=0.7, zorder=0)
    axes.fill_between(ends, ends * (1 - limit), ends * (1 + limit), color="#e8e8e8", lw=0, zorder=-1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("published (in its own unit)")
    axes.set_ylabel(f"predicted; band {limit:.0%}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())


def _by_system(axes: Axes, systems: Sequence[str], limit: float) -> None:
    axes.axvspan(1 - limit, 1 + limit, color="#e8e8e8", lw=0, zorder=-1)
    axes.axvline(1, color="#222222", lw=0.7, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(1 / FURTHEST / 1.1, FURTHEST * 1.1)
    ticks = [0.125, 0.25, 0.5, 1, 2, 4, 8]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(systems)), systems)
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.set_xlabel("predicted over published; median as a tick")
