"""From an executed plan to its result: what every simulation of a plan says, whatever its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from placement.moe_time import worked_tokens
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.schedule_specs import ScheduleSpec
from sim import metrics as measure
from sim.log import step_log
from sim.metrics import Execution
from sim.port_loads import port_loads
from sim.result import RunResult
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A plan's steps, counted and executed."""

    setting: Setting
    placement: Placement
    reduction: Reduction
    schedule: ScheduleSpec
    execution: Execution


def result_of(outcome: Outcome, name: str, plan: dict[str, object], metrics: Mapping[str, float]) -> RunResult:
    """The result of a plan with these metrics; its log is that of the step of median time."""
    setting, placement, reduction = outcome.setting, outcome.placement, outcome.reduction
    execution, schedule = outcome.execution, outcome.schedule
    n_steps = len(execution.step_times_s)
    typical = int(np.argsort(execution.step_times_s, kind="stable")[n_steps // 2])
    tokens = np.repeat(worked_tokens(placement, reduction), setting.layout.tp, axis=2)
    by_step = tokens.reshape(len(tokens), n_steps, -1, *tokens.shape[2:]).sum(axis=2)
    return RunResult(
        name=name,
        plan=plan,
        metrics=dict(metrics),
        breakdown_s=measure.breakdown_s(execution, schedule.step_overhead),
        step_times_s=execution.step_times_s + schedule.step_overhead,
        device_tokens=tokens.sum(axis=(1, 3)) / n_steps,
        device_experts=(by_step > 0).sum(axis=(1, 3)) / n_steps,
        layer_imbalance=measure.step_imbalance(placement, reduction).mean(axis=1),
        traffic_bytes=measure.traffic_bytes(setting, reduction, schedule),
        port_loads=port_loads(setting, reduction, schedule),
        devices_per_node=setting.cluster.devices_per_node,
        log=step_log(execution.op_list, execution.durations, execution.finished, typical),
        logged_step=typical,
    )
