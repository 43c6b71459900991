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
SHOWN = 6
"""Plans that are drawn: the best ones, and the baseline."""
BINS = 200


def serving_figure(table: Table) -> Figure:
    """Above, how many requests waited how long; below, requests in batches, in queues, and the KV cache over time."""
    loads = [(result, result.served) for result in _drawn(table) if result.served is not None]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 4.4), layout="constrained")
        panels = figure.subplots(2, 3)
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
    """Means over equal stretches of time, weighted by how long iterations take; 0 where the engine idles."""
    edges = np.linspace(0, float(served.end_s[-1]), BINS + 1)
    place = np.minimum(np.searchsorted(edges, served.end_s - served.busy_s / 2, side="right") - 1, BINS - 1)
    total = np.bincount(place, values * served.busy_s, BINS)
    busy = np.bincount(place, served.busy_s, BINS)
    return (edges[1:] + edges[:-1]) / 2, total / np.maximum(np.maximum(busy, edges[1] * 0.5), 1e-12)
