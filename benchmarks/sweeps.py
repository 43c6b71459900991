"""Speed of sweeps: points of schedules on a cached reduction of 64 devices, and scenarios along the steps' axis."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import moesim
from benchmarks.cases import moe_program, skewed_durations
from benchmarks.machine import Row, best_s
from scenarios.loader import LoadedScenario, changed
from sim.sweep.points import overrides_of, parse_axis, points_of
from sim.sweep.workers import Task, simulated
from sim.vector import execute

AXES = (
    "schedule={overlap: none},{overlap: chunked, chunks: 2},{overlap: chunked, chunks: 4},{overlap: two-batch}",
    "schedule.exchange.dispatch_dtype=fp8,bf16",
    "memory.reserve=0.01,0.02,0.03,0.04,0.05",
    "schedule.step_overhead=1us,2us,3us,4us,5us",
)
SCENARIOS = 16


def sweep_rows() -> list[Row]:
    """Points/s of one process, of which two do 10,000 in a minute; layer-steps/s of 16 scenarios at once."""
    return [_points_row(), _scenarios_row()]


def _points_row() -> Row:
    loaded = moesim.load(
        {
            "name": "sweep",
            "model": {"card": "deepseek-v3", "n_layers": 4},
            "cluster": {"node": "h200-sxm-8", "nodes": 8},
            "workload": {"synthetic": {"tokens": 16384}, "tokens_per_device": 64, "steps": 4},
        }
    ).loaded
    points = points_of([parse_axis(axis) for axis in AXES], [], None, 0)
    simulated(_task(loaded, points[0]))
    started = time.process_time()
    for point in points:
        simulated(_task(loaded, point))
    rate = len(points) / (time.process_time() - started)
    goal = f"sweep over {len(points)} schedules, 64 devices, one process"
    return Row(goal=goal, unit="points/s", target=10_000 / 60 / 2, measured=rate)


def _task(loaded: LoadedScenario, point: tuple[tuple[str, str], ...]) -> Task:
    return Task(key="", point=point, spec=changed(loaded, overrides_of(point)).spec, base=Path())


def _scenarios_row() -> Row:
    """Scenarios that share an op list stand along the axis of steps."""
    op_list, rng = moe_program("none", 58), np.random.default_rng(0)
    durations = skewed_durations(op_list, (SCENARIOS, 64), rng)
    seconds = best_s(lambda: execute(op_list, durations), repeats=9)
    goal = f"vector executor, {SCENARIOS} scenarios at once, 64 devices"
    return Row(goal=goal, unit="layer-steps/s", target=400e3, measured=58 * SCENARIOS / seconds)
