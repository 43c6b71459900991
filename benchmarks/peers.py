"""Side by side with AIConfigurator (Apache-2.0) in this process: decode steps of one model, layout and engine.

The extra `tables` installs its engine and tables; without it there is nothing to print. The work is not the same:
AIConfigurator looks a step up in tables that hold the worst rank of a power law of experts' popularity; moesim replays
the experts of every token through a placement.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import best_s
from scenarios.specs import ScenarioSpec
from sim.run import simulate
from sim.session import Plan, Session

CONTEXT_TOKENS = 1024
REQUESTS = (8, 16, 32, 64, 128)
"""A device."""
SPEC = {
    "name": "decode of Qwen3-30B-A3B",
    "model": "qwen3-30b-a3b",
    "cluster": {"node": "h200-sxm-8", "kernels": "h200-vllm"},
    "workload": {
        "synthetic": {"tokens": 16384},
        "tokens_per_device": REQUESTS[0],
        "context_tokens": CONTEXT_TOKENS,
        "steps": 8,
    },
    "memory": {"context_tokens": CONTEXT_TOKENS},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Predicted step times of two tools, one a number of requests on a device, and CPU seconds of one prediction."""

    own_s: list[float]
    other_s: list[float]
    own_cost_s: float
    other_cost_s: float


def beside_aiconfigurator() -> Beside | None:
    """Both predictions; None where `aiconfigurator-core` is not installed."""
    if importlib.util.find_spec("aiconfigurator_core") is None:
        return None
    other = _aiconfigurator()
    own_s, own_costs = zip(*map(_own, REQUESTS), strict=True)
    return Beside(
        own_s=list(own_s),
        other_s=[other(requests) for requests in REQUESTS],
        own_cost_s=float(np.mean(own_costs)),
        other_cost_s=best_s(lambda: [other(requests) for requests in REQUESTS]) / len(REQUESTS),
    )


def _own(requests: int) -> tuple[float, float]:
    """Step time, and the CPU seconds of another schedule or placement of the same steps: the trace is there."""
    spec = ScenarioSpec.model_validate(SPEC | {"workload": SPEC["workload"] | {"tokens_per_device": requests}})  # type: ignore[operator]
    session, plan = Session(spec, Path(), banded=False), Plan.of(spec)
    setting = session.setting(plan.cluster, plan.parallel, spec.workload)
    found = simulate(session, setting, plan)
    return found.metrics["step_time_s"], best_s(lambda: simulate(session, setting, plan), repeats=3)


def _aiconfigurator() -> Callable[[int], float]:
    """Step time of so many requests a device by its vLLM tables [s]; attention data-parallel, experts over 8 ranks."""
    os.environ.setdefault("AIC_LOG_LEVEL", "ERROR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from aiconfigurator_core.sdk.engine import EngineHandle

        engine = EngineHandle.compile(
            "Qwen/Qwen3-30B-A3B", "h200_sxm", "vllm", tp_size=1, attention_dp_size=8, moe_ep_size=8
        )
    return lambda requests: float(engine.decode_step_latency(requests, CONTEXT_TOKENS, 2)) / 1e3


def shown(found: Beside) -> tuple[Table, str]:
    """The predictions as a table, and what one costs."""
    table = Table(
        "requests a device",
        "moesim",
        "AIConfigurator",
        "ratio",
        title=f"{SPEC['name']}, 8 H200, DP8 EP8, vLLM's kernels",
    )
    for requests, own_s, other_s in zip(REQUESTS, found.own_s, found.other_s, strict=True):
        table.add_row(str(requests), f"{own_s * 1e3:.2f} ms", f"{other_s * 1e3:.2f} ms", f"{own_s / other_s:.2f}")
    return table, (
        f"CPU time of a prediction: moesim {found.own_cost_s * 1e3:.1f} ms, AIConfigurator "
        f"{found.other_cost_s * 1e6:.0f} µs, {found.own_cost_s / found.other_cost_s:,.0f} times less"
    )


def as_json(found: Beside) -> dict[str, object]:
    """Ratios for the history: of the predictions by requests, and of what they cost."""
    ratios = [round(own_s / other_s, 3) for own_s, other_s in zip(found.own_s, found.other_s, strict=True)]
    cost = round(found.own_cost_s / found.other_cost_s)
    return {"requests": REQUESTS, "over_aiconfigurator": ratios, "cost_over_aiconfigurator": cost}


def main() -> None:
    """Print both, or how to get the other tool."""
    found = beside_aiconfigurator()
    if found is None:
        print("aiconfigurator-core is not installed: pip install 'moesim[tables]'")
        return
    table, cost = shown(found)
    Console(width=100).print(table)
    print(cost)


if __name__ == "__main__":
    main()
