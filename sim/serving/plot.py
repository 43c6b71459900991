"""Figures of served loads: what requests saw, and what the engines did meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sim.figure import STYLE, WIDTH_IN, Figure
from sim.plots import LINE_COLORS
from sim.result import RunResult, Table
from sim.serving.loop import Served
from sim.serving.measures import e2e_s, tpot_s, ttft_s
from sim.wording import shown_name, time_unit

Array = NDArray[np.float64]
Load = tuple[RunResult, Served]
SHOWN = 6
"""Plans that are drawn: the best ones, and the baseline."""
BINS = 200


def serving_figure(table: Table) -> Figure:
    """Above, how many requests waited how long; below, requests in batches, in queues, and the KV cache over time.

    Where iterations were simulated whole, also how uneven the ranks' tokens were, with copies of experts as bars.
    """
    loads = [(result, result.served) for result in _drawn(table) if result.served is not None]
    with mpl.rc_context(STYLE):
        routed = [load for load in loads if load[1].whole_s.size]
        figure = Figure(figsize=(WIDTH_IN, 6.2 if routed else 4.4), layout="constrained")
        mosaic = figure.add_gridspec(3 if routed else 2, 3)
        panels = [[figure.add_subplot(mosaic[row, column]) for column in range(3)] for row in range(2)]
        if routed:
            _imbalance(figure.add_subplot(mosaic[2, :]), routed, loads)
        for axes, (name, of) in zip(panels[0], LATENCIES.items(), strict=True):
            _shares(axes, name, [(result, of(served)) for result, served in loads])
        for axes, (name, over_time) in zip(panels[1], STATES.items(), strict=True):
            for number, (_, served) in enumerate(loads):
                axes.plot(*_binned(served, over_time(served)), lw=1.1, color=LINE_COLORS[number])
            axes.set(title=name, xlabel="time (s)", ylim=(0, None), xlim=(0, None))
            axes.grid(True)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


LATENCIES: dict[str, Callable[[Served], Array]] = {
    "time to first token": ttft_s,
    "time per output token": tpot_s,
    "arrival to last token": e2e_s,
}
STATES: dict[str, Callable[[Served], Array]] = {
    "requests decoding": lambda served: served.decoding.astype(np.float64),
    "requests waiting": lambda served: served.waiting.astype(np.float64),
    "KV cache in use (%)": lambda served: 100 * served.used_blocks / (served.n_ranks * served.n_blocks),
}


def _imbalance(axes: Axes, routed: Sequence[Load], loads: Sequence[Load]) -> None:
    """Tokens of the fullest rank over time; bars below are copies of experts on their way."""
    for load in routed:
        served, color = load[1], LINE_COLORS[loads.index(load)]
        n = max(1, len(served.whole_s) // BINS)
        means = [
            values[: len(values) // n * n].reshape(-1, n).mean(axis=1) for values in (served.whole_s, served.imbalance)
        ]
        axes.plot(*means, lw=1.1, color=color)
        spans = [(begin, max(end - begin, float(served.end_s[-1]) / 400)) for begin, end in served.changes]
        axes.broken_barh(spans, (1.0 - 0.02 * (loads.index(load) + 1), 0.015), color=color)
    usual = np.quantile(np.concatenate([served.imbalance for _, served in routed]), 0.85)
    axes.set(title="tokens of the fullest rank over the mean, experts of a layer", xlabel="time (s)", xlim=(0, None))
    axes.set_ylim(1 - 0.02 * (len(loads) + 1), 1 + (usual - 1) * 1.2)
    axes.grid(True)


def _drawn(table: Table) -> Sequence[RunResult]:
    best = list(table.results[:SHOWN])
    first = next(result for result in table.results if result.name == table.first)
    return best if first in best else [*best[:-1], first]


def _shares(axes: Axes, name: str, times: Sequence[tuple[RunResult, Array]]) -> None:
    unit, length_s = time_unit([float(np.quantile(times_s, 0.99)) for _, times_s in times if len(times_s)])
    for number, (result, times_s) in enumerate(times):
        share = np.arange(1, len(times_s) + 1) / max(len(times_s), 1)
        axes.plot(np.sort(times_s) / length_s, share, lw=1.3, color=LINE_COLORS[number], label=shown_name(result.name))
    longest = max((float(np.quantile(times_s, 0.995)) for _, times_s in times if len(times_s)), default=1.0)
    axes.set(title=name, xlabel=f"{unit}, share of requests below", ylim=(0, 1), xlim=(0, longest / length_s * 1.02))
    axes.grid(True)


def _binned(served: Served, values: Array) -> tuple[Array, Array]:
    """Means over equal stretches of time: an iteration has its value while it lasts, and an idle engine 0."""
    edges = np.linspace(0, float(served.end_s[-1]), BINS + 1)
    summed = np.cumsum(values * served.busy_s)
    times_s = np.stack([served.end_s - served.busy_s, served.end_s], axis=1).ravel()
    until = np.interp(edges, times_s, np.stack([summed - values * served.busy_s, summed], axis=1).ravel())
    return (edges[1:] + edges[:-1]) / 2, np.diff(until) / edges[1]
