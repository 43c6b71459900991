"""Speed of the vector executor: layer-steps per second, and the ratio to textbook SimPy in the same run."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import moe_program, skewed_durations
from benchmarks.machine import Row, best_s
from sim.vector import execute
from tests.oracles import textbook

LAYERS = 58


def executor_rows() -> list[Row]:
    """Throughput of the vector executor, and its ratio to textbook SimPy."""
    rng = np.random.default_rng(0)
    rows = []
    for policy, chunks, target in (("none", 1, 50e3), ("chunked", 4, 12e3)):
        op_list = moe_program(policy, LAYERS, chunks)
        for n_devices in (8, 32, 64, 128, 320, 512):
            durations = skewed_durations(op_list, (n_devices,), rng)
            seconds = best_s(lambda d=durations, o=op_list: execute(o, d), repeats=9)
            goal = f"vector executor, {chunks} chunk(s), {n_devices} devices"
            rows.append(Row(goal=goal, unit="layer-steps/s", target=target, measured=LAYERS / seconds))
    return rows + [_ratio_row(n_devices, target, rng) for n_devices, target in ((32, 200), (64, 500), (320, 2000))]


def _ratio_row(n_devices: int, target: float, rng: np.random.Generator) -> Row:
    """Textbook SimPy on few layers, because it is slow; both per layer."""
    few = 2 if n_devices < 100 else 1
    short, long = moe_program("none", few), moe_program("none", LAYERS)
    durations = skewed_durations(short, (n_devices,), rng)
    textbook_s = best_s(lambda: textbook.simulate(short.ops, durations, np.zeros(n_devices), "port"), repeats=2) / few
    many = skewed_durations(long, (n_devices,), rng)
    vector_s = best_s(lambda: execute(long, many), repeats=9) / LAYERS
    goal = f"vector over textbook SimPy, {n_devices} devices"
    return Row(goal=goal, unit="times", target=target, measured=textbook_s / vector_s, scales=False)
