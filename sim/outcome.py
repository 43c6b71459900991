"""From an executed plan to its result: what every simulation of a plan says, whatever its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from placement.moe_time import Tokens, worked_tokens
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.schedule_specs import ScheduleSpec
from sim import metrics as measure
from sim.expert_loads import expert_loads
from sim.log import step_log
from sim.log_bytes import with_bytes
from sim.metrics import Execution
from sim.pools import on_devices
from sim.port_loads import port_loads
from sim.result import RunResult
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A plan's steps, counted and executed; where experts have a pool of their own, on simulated devices."""

    setting: Setting
    placement: Placement
    reduction: Reduction
    schedule: ScheduleSpec
    execution: Execution


def result_of(outcome: Outcome, name: str, plan: dict[str, object], metrics: Mapping[str, float]) -> RunResult:
    """The result of a plan with these metrics; its log is that of the step of median time."""
    setting, placement, reduction = outcome.setting, outcome.placement, outcome.reduction
    execution, schedule = outcome.execution, outcome.schedule
    n_steps, runs = len(execution.step_times_s), setting.model.iterations
    typical = int(np.argsort(execution.step_times_s, kind="stable")[n_steps // 2])
    tokens, experts = _tokens_and_experts(worked_tokens(placement, reduction), n_steps)
    log = step_log(execution.op_list, execution.durations, execution.finished, typical)
    return RunResult(
        name=name,
        plan=plan,
        metrics=dict(metrics),
        breakdown_s=measure.breakdown_s(on_devices(execution, setting), schedule.step_overhead),
        step_times_s=execution.step_times_s + schedule.step_overhead,
        device_tokens=_of_layers(np.repeat(tokens / n_steps, setting.layout.tp, axis=1), runs) * runs,
        device_experts=_of_layers(np.repeat(experts / n_steps, setting.layout.tp, axis=1), runs),
        expert_loads=expert_loads(placement, reduction),
        layer_imbalance=_of_layers(measure.step_imbalance(placement, reduction).mean(axis=1), runs),
        traffic_bytes=measure.traffic_bytes(setting, reduction, schedule),
        port_loads=port_loads(setting, reduction, schedule),
        devices_per_node=gcd(setting.cluster.devices_per_node, setting.expert_cluster.devices_per_node),
        log=with_bytes(log, typical, setting, reduction, schedule),
        logged_step=typical,
    )


def _tokens_and_experts(worked: Tokens, n_steps: int) -> tuple[Tokens, Tokens]:
    """Tokens, and experts with a token in a step, over all steps: int64[layer, rank] of [layer, part, rank, place]."""
    n_chunks = worked.shape[1] // n_steps
    by_step = worked if n_chunks == 1 else worked.reshape(len(worked), n_steps, n_chunks, *worked.shape[2:]).sum(axis=2)
    return worked.sum(axis=-1).sum(axis=1), np.count_nonzero(by_step, axis=-1).sum(axis=1)


def _of_layers(values: NDArray[np.float64], runs: int) -> NDArray[np.float64]:
    """Means float64[MoE layer, ...] of values of every run of a layer."""
    means: NDArray[np.float64] = values.reshape(-1, runs, *values.shape[1:]).mean(axis=1)
    return means
