"""Speed of a grid of layers, each simulated under several schedules."""

from __future__ import annotations

import time

from benchmarks.machine import Row
from scenarios.catalog import find_paper
from scenarios.loader import load_spec
from scenarios.paper_specs import PaperSpec
from sim.reproduce.cases import Cases


def layer_rows() -> list[Row]:
    """FSMoE's grid of 1,458 layers, the best of four degrees found for each, in a minute on one core."""
    path = find_paper("fsmoe")
    paper = load_spec(path, PaperSpec)
    cases, points = Cases(paper, path.parent, "benchmark"), list(paper.points("layers"))
    started = time.perf_counter()
    for point in points:
        cases.metric("step_time_s", "fsmoe", point)
    seconds = time.perf_counter() - started
    goal = f"{len(points):,} layers of FSMoE's grid, four degrees each"
    return [Row(goal=goal, unit="layers/s", target=len(points) / 60, measured=len(points) / seconds)]
