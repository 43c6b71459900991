"""Speed of the reduction plane, of first visits, and of sweeps on a cached reduction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.cases import nodes_of_eight, spread, v3_trace
from benchmarks.machine import Row, best_s
from placement.plan import Placement
from placement.reduction import Reduction, reduce_trace
from scenarios.catalog import find_model
from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.workload_specs import SplitSpec, WorkloadSpec
from sim.priced_steps import execute_schedule
from sim.pricing import price
from sim.setting import Setting, make_setting
from traces.routing import RoutingTrace
from traces.stats import expert_loads


def reduction_rows() -> list[Row]:
    """Goal 6: token-layers per second of loads alone, and of loads, device and node deduplication together."""
    trace = v3_trace(65536, np.random.default_rng(0), n_layers=16)
    tokens = np.arange(65536).reshape(1, 64, 1024)
    token_layers, placement = trace.n_layers * trace.n_tokens, spread(64, 16)
    rows = [
        Row(
            goal="expert loads, numpy",
            unit="token-layers/s",
            target=60e6,
            measured=token_layers / best_s(lambda: expert_loads(trace)),
        )
    ]
    for speed, target in (("numpy", 6e6), ("numba", 25e6)):
        with chosen(speed):
            work = lambda: reduce_trace(trace, tokens, placement, nodes_of_eight(64), dedup="node")  # noqa: E731
            work()
            rows.append(
                Row(
                    goal=f"full reduction, {speed}",
                    unit="token-layers/s",
                    target=target,
                    measured=token_layers / best_s(work),
                )
            )
    return rows


def step_rows() -> list[Row]:
    """Goals 7 and 8: a decode step visited first, and schedules swept over a cached reduction."""
    trace = v3_trace(40960 * 2, np.random.default_rng(0))
    rows = []
    for n_devices, targets in ((32, {"numpy": 20, "numba": 80}), (320, {"numpy": 2, "numba": 8})):
        setting, placement = _setting(trace, n_devices, steps=1), spread(n_devices)
        for speed, target in targets.items():
            with chosen(speed):
                work = lambda s=setting, p=placement: execute_schedule(s, p, _reduce(s, p), ScheduleSpec())  # noqa: E731
                work()
                goal = f"decode step with its reduction, EP{n_devices}, {speed}"
                rows.append(Row(goal=goal, unit="steps/s", target=target, measured=1 / best_s(work, repeats=3)))
    setting, placement = _setting(trace, 64, steps=16), spread(64)
    reduction = _reduce(setting, placement)
    seconds = best_s(lambda: execute_schedule(setting, placement, reduction, ScheduleSpec()))
    rows.append(
        Row(goal="policy point on a cached reduction, EP64 decode", unit="steps/s", target=500, measured=16 / seconds)
    )
    return [*rows, _pricing_row(trace)]


def _pricing_row(trace: RoutingTrace) -> Row:
    """Durations of one step of DeepSeek-V3's 58 MoE layers on 320 devices, from counted tokens."""
    setting, placement = _setting(trace, 320, steps=1), spread(320)
    reduction, exchange = _reduce(setting, placement), ScheduleSpec().exchange
    seconds = best_s(lambda: price(setting, placement, reduction, exchange))
    return Row(goal="pricing a DeepSeek-V3 step, EP320", unit="steps/s", target=500, measured=1 / seconds)


def _setting(trace: RoutingTrace, n_devices: int, steps: int) -> Setting:
    return make_setting(
        model=find_model("deepseek-v3", Path()),
        cluster=ClusterSpec(node="h200-sxm-8", nodes=n_devices // 8),
        parallel=ParallelSpec(),
        workload=WorkloadSpec(trace="-", tokens_per_device=128, steps=steps, split=SplitSpec(fit=0, evaluate=1)),
        trace=trace,
        seed=0,
    )


def _reduce(setting: Setting, placement: Placement) -> Reduction:
    return reduce_trace(setting.batches.trace, setting.batches.tokens, placement, setting.layout)


@contextmanager
def chosen(speed: str) -> Iterator[None]:
    """Select the counting kernel for a while."""
    before = os.environ.get("MOESIM_SPEED")
    os.environ["MOESIM_SPEED"] = speed
    try:
        yield
    finally:
        os.environ.pop("MOESIM_SPEED")
        if before is not None:
            os.environ["MOESIM_SPEED"] = before
