"""Speed of expert caches: replays without time, whole curves over the capacity, and slots on the timeline."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import Row, best_s
from scenarios.catalog import find_trace
from scenarios.specs import ScenarioSpec
from sim.offload import offloaded
from sim.offload.replay import Replayed
from sim.run import simulate
from sim.session import Plan, Session
from traces.cache_curves import lru_curve
from traces.caches import CacheEvents, events_from_trace, replay_cache
from traces.storage import load_trace

TRACE = "moesim-20m-prefill"


def cache_rows() -> list[Row]:
    """Accesses/s of replays without time; layer-steps/s of slots with and without their prices."""
    trace = load_trace(find_trace(TRACE, Path()))
    events = events_from_trace(trace, np.arange(trace.n_tokens)[:, None])
    n_accesses = len(events.pool_ids)
    return [
        _rate("LRU of one capacity", n_accesses, best_s(lambda: replay_cache(events, 24), repeats=3)),
        *compiled_rows(events),
        _rate("LRU of all capacities", n_accesses, best_s(lambda: lru_curve(trace, "per_layer_cold"), repeats=3)),
        *slot_rows(),
    ]


def compiled_rows(events: CacheEvents) -> list[Row]:
    """The same replay compiled, where the extra `speed` is installed."""
    if importlib.util.find_spec("numba") is None:
        return []
    os.environ["MOESIM_SPEED"] = "numba"
    try:
        replay_cache(events, 24)  # compiles
        seconds = best_s(lambda: replay_cache(events, 24), repeats=3)
    finally:
        del os.environ["MOESIM_SPEED"]
    return [_rate("LRU of one capacity, compiled", len(events.pool_ids), seconds, target=40e6)]


def _rate(goal: str, n_accesses: int, seconds: float, target: float = 4e6) -> Row:
    return Row(goal=f"{goal}, shipped trace", unit="accesses/s", target=target, measured=n_accesses / seconds)


def slot_rows() -> list[Row]:
    """Qwen3-30B-A3B with a quarter of its experts in slots, 500 steps of 4 tokens on one device."""
    spec = {
        "name": "slots",
        "model": "qwen3-30b-a3b",
        "cluster": {"node": "h100-sxm-8", "devices_per_node": 1},
        "workload": {"synthetic": {"tokens": 8192}, "tokens_per_device": 4, "steps": 500},
        "memory": {"offload": {"share": 0.25, "evict": "lru"}},
    }
    replayed: list[float] = []
    plain = offloaded.replay

    def timed(*args: object, **kwargs: object) -> Replayed:
        started = time.process_time()
        found = plain(*args, **kwargs)  # type: ignore[arg-type]
        replayed.append(time.process_time() - started)
        return found

    scenario = ScenarioSpec.model_validate(spec)
    session = Session(scenario, Path(), banded=False)
    plan = Plan.of(scenario)
    setting = session.setting(plan.cluster, plan.parallel, scenario.workload)
    offloaded.replay = timed  # type: ignore[assignment]
    try:
        whole_s = best_s(lambda: simulate(session, setting, plan), repeats=3)
    finally:
        offloaded.replay = plain
    n = 48 * 500
    rates = {"replayed": n / min(replayed), "simulated and measured": n / whole_s}
    return [
        Row(goal=f"slots {what}, Qwen3-30B-A3B", unit="layer-steps/s", target=150e3, measured=rate)
        for what, rate in rates.items()
    ]
