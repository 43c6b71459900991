"""Figures of a sweep: the metric over its axes, what every axis does, and speed for a user against throughput."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from sim.figure import STYLE, WIDTH_IN, Figure
from sim.plots import LINE_COLORS
from sim.sweep.findings import Effect, done, effects, front, ranked, throughput, tokens_per_s_per_user
from sim.sweep.store import Result

LABELLED = 14
"""Values of an axis whose cells are labelled."""
LINES = 300
"""Points beside the best tenth that are drawn as lines."""
TEXT_BOX = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}


def map_figure(results: Sequence[Result], metric: str) -> Figure | None:
    """The metric over the two axes that move it most, mean over the others; None with fewer than two axes."""
    moving = [effect for effect in effects(results, metric) if len(effect.means) > 1]
    if len(moving) < 2:
        return None
    # The axis with more values lies along the page.
    across, up = sorted(moving[:2], key=lambda effect: -len(effect.means))
    cells = np.full((len(up.means), len(across.means)), np.nan)
    for row, one in enumerate(up.means):
        for column, other in enumerate(across.means):
            values = [
                r["metrics"][metric]
                for r in done(results)
                if (r["point"][up.path], r["point"][across.path]) == (one, other) and metric in r["metrics"]
            ]
            if values:
                cells[row, column] = np.mean(values)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 1.2 + 0.32 * len(up.means)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(cells, aspect="auto", cmap="viridis", origin="lower")
        axes.set_xticks(range(len(across.means)), list(across.means))
        axes.set_yticks(range(len(up.means)), list(up.means))
        axes.set(xlabel=across.path, ylabel=up.path)
        axes.spines[:].set_visible(False)
        if max(cells.shape) <= LABELLED:
            middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
            for (row, column), value in np.ndenumerate(cells):
                if np.isfinite(value):
                    color = "white" if value < middle else "#222222"
                    axes.text(column, row, _shown(value), ha="center", va="center", fontsize=6.5, color=color)
        figure.colorbar(image, ax=axes, label=metric)
    return figure


def parallel_figure(results: Sequence[Result], metric: str) -> Figure | None:
    """A line a point through its values, axes of the sweep side by side; the best tenth in colour, the best one thick.

    None with fewer than two axes that move the metric.
    """
    moving = [effect for effect in effects(results, metric) if len(effect.means) > 1]
    if len(moving) < 2:
        return None
    points = ranked(results, metric)
    values = np.array([point["metrics"][metric] for point in points])
    spans = [{value: i / (len(axis.means) - 1) for i, value in enumerate(axis.means)} for axis in moving]
    ends = (values - values.min()) / max(np.ptp(values), 1e-300)
    n_best = max(1, len(points) // 10)
    drawn = [*range(n_best), *range(n_best, len(points), max(1, len(points) // LINES))]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.2), layout="constrained")
        axes = figure.subplots()
        for rank in reversed(drawn):
            heights = [
                span.get(points[rank]["point"][axis.path], 0.0) for span, axis in zip(spans, moving, strict=True)
            ]
            color, width = ("#c9c9c9", 0.5) if rank >= n_best else (LINE_COLORS[0], 0.8 if rank else 2.2)
            axes.plot(range(len(moving) + 1), [*heights, ends[rank]], color=color, lw=width)
        last = {_shown(float(values.min())): 0.0, _shown(float(values.max())): 1.0}
        for column, span in enumerate([*spans, last]):
            axes.axvline(column, color="#5b6675", lw=0.8)
            for text, height in span.items():
                short = text if len(text) < 34 else f"{text[:32]}…"
                axes.text(column + 0.02, height, short, fontsize=6.5, va="center", bbox=TEXT_BOX)
        axes.set_xticks(range(len(moving) + 1), [*(axis.path for axis in moving), metric])
        axes.set(yticks=[], xlim=(-0.05, len(moving) + 0.3))
        axes.spines[:].set_visible(False)
    return figure


def effects_figure(results: Sequence[Result], metric: str) -> Figure | None:
    """The geometric mean of the metric by the values of every axis; None where no axis moves it."""
    moving = [effect for effect in effects(results, metric) if len(effect.means) > 1]
    if not moving:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.4), layout="constrained")
        panels = figure.subplots(1, len(moving[:4]), squeeze=False, sharey=True)[0]
        for axes, effect in zip(panels, moving, strict=False):
            _draw_effect(axes, effect)
        panels[0].set_ylabel(f"{metric}, geometric mean")
    return figure


def _draw_effect(axes: mpl.axes.Axes, effect: Effect) -> None:
    axes.plot(range(len(effect.means)), list(effect.means.values()), "o-", ms=3.5, lw=1.3, color=LINE_COLORS[1])
    axes.set_xticks(range(len(effect.means)), [name if len(name) < 18 else f"{name[:16]}…" for name in effect.means])
    if sum(map(len, effect.means)) > 26:
        axes.tick_params(axis="x", rotation=20)
    axes.yaxis.set_major_formatter(lambda value, _place: _shown(value))
    axes.set_title(f"{effect.path}: {effect.span:.0%}" if np.isfinite(effect.span) else effect.path)
    axes.grid(axis="y")


def front_figure(results: Sequence[Result]) -> Figure | None:
    """Every point by speed for a user and throughput, and the front that no point beats; None for fewer than three."""
    points = done(results)
    if len(points) < 3:
        return None
    best = front(points)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN * 0.62, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [tokens_per_s_per_user(r) for r in points], [throughput(r) for r in points], "o", ms=3, color="#c9c9c9"
        )
        axes.plot(
            [tokens_per_s_per_user(r) for r in best], [throughput(r) for r in best], "o-", ms=4, color=LINE_COLORS[0]
        )
        axes.set(xlabel="tokens/s of a user", ylabel="tokens/s of a device")
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(lambda value, _place: _shown(value))
            axis.set_minor_formatter(NullFormatter())
        axes.grid(True)
    return figure


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _speeds(result: Result) -> tuple[float, float]:
    return tokens_per_s_per_user(result), throughput(result)
