"""Pipelines under each other, on one time axis: what every stage does, and when it waits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sim.figure import Figure
from sim.pipelines.pipeline import StageBar
from sim.wording import shown_percent, shown_time, time_unit

COLORS = {
    "forward": "#4477aa",
    "backward": "#ee6677",
    "backward-input": "#cc3311",
    "backward-weight": "#ccbb44",
    "update": "#777777",
}
TURNED = {"forward": "#99bbdd", "backward": "#f7b5bd", "backward-input": "#e59a8d", "backward-weight": "#e8dfa5"}
"""Colours of passes, and of those that enter at the last stage."""
DIGIT_IN = 0.055
HEIGHT = 0.86
"""Of a bar, in rows."""


def draw_pipelines(panels: Sequence[tuple[str, Sequence[StageBar]]], width_in: float) -> Figure:
    """One panel a pipeline, one row a stage, numbers of microbatches in the bars.

    A forward pass that hides a backward pass stands above it in one bar.
    """
    longest_s = max(bar.end_s for _, bars in panels for bar in bars)
    unit, length_s = time_unit([longest_s])
    heights = [1 + max(bar.stage for bar in bars) for _, bars in panels]
    figure = Figure(figsize=(width_in, 0.19 * sum(heights) + 0.3 * len(panels) + 0.65), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, bars), n_stages in zip(grid, panels, heights, strict=True):
        axes.set(xlim=(0, longest_s / length_s * 1.005), ylim=(n_stages - 0.5, -0.5))
        axes.set_yticks(range(n_stages), [str(stage) for stage in range(n_stages)])
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelbottom=axes is grid[-1])
        _draw(axes, bars, length_s, width_in)
        step_s = max(bar.end_s for bar in bars)
        waiting = 1 - sum(bar.end_s - bar.begin_s for bar in bars) / (n_stages * step_s)
        axes.set_title(title)
        stated = f"step: {shown_time(step_s)}, bubbles {shown_percent(waiting)}"
        axes.set_title(stated, loc="right", fontweight="normal")
    figure.supxlabel(f"time ({unit})", fontsize=8)
    figure.supylabel("stage", fontsize=8)
    _legend(figure, [bar for _, bars in panels for bar in bars])
    return figure


def _draw(axes: Axes, bars: Sequence[StageBar], length_s: float, width_in: float) -> None:
    boxes: dict[str, list[NDArray[np.float64]]] = {}
    for bar in bars:
        left, right = bar.begin_s / length_s, bar.end_s / length_s
        edges = bar.stage + HEIGHT * (np.arange(len(bar.passes) + 1) / len(bar.passes) - 0.5)
        for (kind, _, turned), top, bottom in zip(bar.passes, edges[:-1], edges[1:], strict=True):
            corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
            boxes.setdefault((TURNED if turned else COLORS)[kind], []).append(corners)
        kind, microbatch, turned = bar.passes[0]
        wide_in = (right - left) / axes.get_xlim()[1] * (width_in - 0.8)
        if len(bar.passes) == 1 and microbatch >= 0 and wide_in > DIGIT_IN * (len(str(microbatch)) + 0.5):
            ink = "#222" if turned or kind == "backward-weight" else "white"
            middle = ((left + right) / 2, bar.stage)
            axes.text(*middle, str(microbatch), ha="center", va="center", fontsize=5, color=ink, clip_on=True)
    for color, of_color in boxes.items():
        axes.add_collection(PolyCollection(of_color, facecolor=color, edgecolor="white", linewidth=0.3), autolim=False)


def _legend(figure: Figure, bars: Sequence[StageBar]) -> None:
    """Kinds of passes that were drawn; lighter ones came from the last stage."""
    seen = {(kind, turned) for bar in bars for kind, _, turned in bar.passes}
    names = [kind for kind in COLORS if (kind, False) in seen]
    handles = [Patch(facecolor=COLORS[kind]) for kind in names]
    if any(turned for _, turned in seen):
        names, handles = [*names, "lighter: from the last stage"], [*handles, Patch(facecolor=TURNED["forward"])]
    figure.legend(handles, names, loc="outside upper left", ncols=5)
