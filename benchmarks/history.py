"""A picture of all runs: how far every goal was reached, run by run."""

from __future__ import annotations

import json
from pathlib import Path

from sim.figure import WIDTH_IN, Figure, png_bytes

TICKS = (0.2, 0.5, 1, 2, 5, 10, 30)
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "speed.png"


def draw(history: Path) -> Path:
    """The picture's path. A dot is a goal in a run, met from 1 on; the last run is coloured."""
    runs = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    goals = list(dict.fromkeys(goal for run in reversed(runs) for goal in run["goals"]))
    figure = Figure(figsize=(WIDTH_IN, 0.6 + 0.17 * len(goals)), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        last = number == len(runs) - 1
        reached = [run["goals"].get(goal) for goal in goals]
        there = [(value, row) for row, value in enumerate(reached) if value]
        values, rows = zip(*there, strict=True)
        colors = ["#b3353f" if value < 1 else "#1d7440" for value in values] if last else "#b8c0ca"
        axes.scatter(values, rows, s=14 if last else 8, c=colors, zorder=2 + last)
    axes.axvline(1.0, color="#5b6675", lw=0.8)
    axes.set(xscale="log")
    axes.set_xlabel(f"reached over goal; coloured: {runs[-1]['date']}", fontsize=8)
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_yticks(range(len(goals)), goals, fontsize=6.5)
    axes.set_ylim(len(goals) - 0.4, -0.6)
    axes.grid(True, axis="x")
    PICTURE.write_bytes(png_bytes(figure))
    return PICTURE
