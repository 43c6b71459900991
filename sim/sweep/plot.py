"""Figures of a sweep: the metric over its axes, what every axis does, and speed for a user against throughput."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from sim.figure import STYLE, WIDTH_IN, Figure
from sim.plots import LINE_COLORS
from sim.sweep.findings import Effect, done, effects, front, throughput, tokens_per_s_per_user
from sim.sweep.store import Result

LABELLED = 14
"""Values of an axis whose cells are labelled."""


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
