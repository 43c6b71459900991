"""Speed of served loads: 10,000 requests by tables at light to heavy loads, and iterations that are simulated whole."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.machine import Row
from scenarios.serving_specs import ServingSpec
from scenarios.specs import ScenarioSpec
from sim.run import run
from sim.serving import simulate
from sim.serving.loop import serve
from sim.serving.prices import Line, Surface, TablePrices
from traces.requests import made_up

LOADS = ((2, 200), (10, 200), (24, 200), (2, 885), (8, 885))
"""Requests/s and mean tokens out."""
SIZES = [float(2**i) for i in range(12)]


def serving_rows() -> list[Row]:
    """Time and iterations/s by tables, and iterations/s with exact routing."""
    rows = []
    for rate, out in LOADS:
        spec = ServingSpec.model_validate({"requests": {"requests_per_s": rate, "n": 10_000, "output_tokens": out}})
        requests = made_up(spec.requests, np.random.default_rng(0))
        started = time.process_time()
        served = serve(requests, spec, 1, 100_000, round_tables())
        seconds = time.process_time() - started
        name = f"10,000 requests by tables, {rate}/s, {out} tokens out"
        rows.append(Row(goal=name, unit="CPU s", target=2.0, measured=seconds, at_most=True))
        rows.append(
            Row(goal=f"{name}, rate", unit="iterations/s", target=200e3, measured=int(served.n.sum()) / seconds)
        )
    return [*rows, exact_row()]


def round_tables() -> TablePrices:
    """Tables of about 5 to 50 ms an iteration."""
    steps = Line(SIZES, [0.004 + size * 2e-5 for size in SIZES])
    lines = [Line([1.0, 1024.0, 65536.0], [0.0, size * 1e-6, size * 64e-6]) for size in SIZES]
    own = [Line(SIZES, [share * value for value in steps.values]) for share in (0.3, 0.05)]
    return TablePrices(
        steps={"decode": steps, "prefill": steps},
        local=own[0],
        head=own[1],
        decode=Surface(SIZES, lines),
        prompts=Surface(SIZES, lines),
        attention_tp=1,
        host_s=0.0,
    )


def exact_row() -> Row:
    """Iterations of OLMoE on eight devices, every one simulated whole; saturated, with prompts in an eighth of them."""
    spec = {
        "name": "exact",
        "model": "olmoe-1b-7b",
        "cluster": {"node": "h200-sxm-8"},
        "workload": {"synthetic": {"tokens": 20_000}},
        "serving": {
            "requests": {"requests_per_s": 2000, "n": 1500, "input_tokens": 500, "output_tokens": 200},
            "token_budget": 1024,
            "routes": {"exact_every": 1},
        },
    }
    measured: dict[str, float] = {}
    plain = simulate.serve

    def timed(*args: object, **kwargs: object) -> object:
        started = time.process_time()
        served = plain(*args, **kwargs)  # type: ignore[arg-type]
        measured["rate"] = len(served.busy_s) / (time.process_time() - started)
        measured["batch"] = float(served.decoding.mean())
        return served

    simulate.serve = timed  # type: ignore[assignment]
    try:
        run(ScenarioSpec.model_validate(spec), Path(), "benchmark")
    finally:
        simulate.serve = plain
    goal = f"exact routing, OLMoE on 8 devices, {measured['batch']:.0f} requests decoding"
    return Row(goal=goal, unit="iterations/s", target=250, measured=measured["rate"])
