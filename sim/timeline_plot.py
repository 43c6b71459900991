"""Timelines of one device under each other, on one time axis: what a schedule changes, from the logs of two runs."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from sim.figure import STYLE, WIDTH_IN, Figure
from sim.log import OpTimes
from sim.plot_data import kind_color, kinds_in_order
from sim.result import RunResult
from sim.timeline import middle_window
from sim.training import BACKWARD, plain_kind
from sim.wording import shown_time, time_unit

LETTER_IN = 0.062
"""Width of a letter of a bar's name."""


def timelines_figure(panels: Sequence[tuple[str, RunResult]], n_layers: int = 2) -> Figure:
    """Lanes of the busiest device around `n_layers` MoE layers in the middle of the logged step, one panel a run.

    panels  title and result of each run; the first one chooses the device.
    """
    windows = [middle_window(result.log, n_layers) for _, result in panels]
    longest_s = max(window.end_s - window.begin_s for window in windows)
    unit, length_s = time_unit([longest_s])
    device = int(np.argmax(np.sum([op.busy_s for op in panels[0][1].log if op.lane == "compute"], axis=0)))
    seen = [
        [op for op in result.log if window.begin_s < op.end_s[device] > op.begin_s[device] < window.end_s]
        for (_, result), window in zip(panels, windows, strict=True)
    ]
    drawn = [_lanes(log, device) for log in seen]
    heights = [max(len(names), 1) for names, _ in drawn]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.24 * sum(heights) + 0.28 * len(panels) + 0.65), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        kinds: set[str] = set()
        for axes, (title, result), window, (names, bars) in zip(grid, panels, windows, drawn, strict=True):
            axes.set(xlim=(0, longest_s / length_s * 1.005), ylim=(len(names) - 0.5, -0.5))
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelbottom=axes is grid[-1])
            for op, row in bars:
                span = (op.begin_s[device] - window.begin_s, op.end_s[device] - window.begin_s)
                kinds |= _draw(axes, op, row, (span[0] / length_s, span[1] / length_s), op.busy_s[device] / length_s)
            axes.set_title(title)
            step = f"whole step: {shown_time(result.metrics['step_time_s'])}"
            axes.set_title(step, loc="right", fontweight="normal")
        layers = "MoE layer" if n_layers == 1 else "MoE layers"
        backward = any(op.work.kind.endswith(BACKWARD) for log in seen for op in log)
        layers += " of the backward pass" if backward else ""
        figure.supxlabel(f"time ({unit}) of device {device}, {n_layers} {layers}", fontsize=8)
        shown = kinds_in_order(kinds)
        handles = [Patch(facecolor=kind_color(kind)) for kind in shown]
        figure.legend(handles, shown, loc="outside upper left", ncols=min(9, len(shown)))
    return figure


def _lanes(log: Sequence[OpTimes], device: int) -> tuple[list[str], list[tuple[OpTimes, int]]]:
    """Names of the rows, computing first, and the operations with their rows; a lane takes a row more where two of its
    exchanges overlap."""
    rows: list[tuple[str, float]] = []
    placed: list[tuple[OpTimes, int]] = []
    for op in sorted(log, key=lambda op: op.lane != "compute"):
        fits = (i for i, (lane, free) in enumerate(rows) if lane == op.lane and free <= op.begin_s[device] + 1e-12)
        row = next(fits, len(rows))
        rows[row : row + 1] = [(op.lane, float(op.end_s[device]))]
        placed.append((op, row))
    names = [lane for lane, _ in rows]
    return [name if name not in names[:row] else "" for row, name in enumerate(names)], placed


def _draw(axes: Axes, op: OpTimes, row: int, span: tuple[float, float], busy: float) -> set[str]:
    """Draw an operation, waiting for others in grey at its end; the kinds that were drawn."""
    kind, (begin, end) = plain_kind(op.work.kind), span
    done = min(begin + busy, end)
    axes.barh(row, done - begin, left=begin, height=0.8, facecolor=kind_color(kind), edgecolor="white", linewidth=0.4)
    kinds = {kind}
    if end - done > 1e-3 * (end - begin):
        axes.barh(row, end - done, left=done, height=0.8, facecolor=kind_color("waiting"), edgecolor="none")
        kinds.add("waiting")
    part = "" if op.work.chunk < 0 else f"{op.work.chunk}"
    wide_in = (done - begin) / axes.get_xlim()[1] * (WIDTH_IN - 0.8)
    fits = (name for name in (f"{kind} {part}".strip(), part) if name and wide_in > LETTER_IN * (len(name) + 1))
    if (name := next(fits, None)) is not None:
        red, green, blue = to_rgb(kind_color(kind))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        axes.text(
            (begin + done) / 2,
            row,
            name,
            ha="center",
            va="center",
            fontsize=6,
            clip_on=True,
            color="white" if dark else "#222",
        )
    return kinds
