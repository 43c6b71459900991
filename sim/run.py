"""From a scenario to results: `run` simulates its own plan, `compare` every combination of its axes."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.specs import (
    ClusterSpec,
    CompareSpec,
    ParallelSpec,
    PlacementSpec,
    ScenarioSpec,
    ScheduleSpec,
)
from sim import metrics as measure
from sim.constants import constants_of
from sim.durations import Duration, ExchangeTime, Seconds
from sim.engine import replay
from sim.events import execute_events
from sim.laws import LAWS
from sim.log import step_log
from sim.memory import check_memory, device_memory
from sim.metrics import Execution
from sim.policies import POLICIES
from sim.pricing import price, tokens_by_rank
from sim.program import OpList, compile_program
from sim.result import Comparison, RunResult, Table
from sim.session import Session, solve_placement
from sim.setting import Setting, build_step
from sim.vector import Finished, execute

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One combination of axes: what a row of a table stands for."""

    cluster: ClusterSpec
    parallel: ParallelSpec
    placement: PlacementSpec
    schedule: ScheduleSpec


def run(spec: ScenarioSpec, base: Path, version: str) -> Comparison:
    """The scenario's own plan, simulated; paths are relative to `base`."""
    return compare(spec.model_copy(update={"compare": CompareSpec()}), base, version)


def compare(spec: ScenarioSpec, base: Path, version: str, progress: Progress | None = None) -> Comparison:
    """Every plan of the scenario's axes, simulated on the same steps and ranked, one table a workload.

    Raises ScenarioError where the scenario has no axes, and what the stages raise.
    """
    if spec.compare is None:
        raise ScenarioError(f"{spec.name}: no `compare:` section; add its axes, or use `moesim run`")
    started = time.perf_counter()
    session, axes = Session(spec, base), spec.compare
    plans = [
        Plan(cluster=cluster, parallel=parallel, placement=placement, schedule=schedule)
        for cluster, parallel, placement, schedule in product(
            axes.cluster or [spec.cluster],
            axes.parallel or [spec.parallel],
            axes.placement or [spec.placement],
            axes.schedule or [spec.schedule],
        )
    ]
    workloads = axes.workload or (spec.workload,)
    done = 0
    tables, first_setting = [], None
    for workload in workloads:
        results = []
        for plan in plans:
            setting = session.setting(plan.cluster, plan.parallel, workload)
            first_setting = first_setting or setting
            results.append(simulate(session, setting, plan))
            done += 1
            if progress is not None:
                progress(results[-1].name, done / (len(plans) * len(workloads)))
        tables.append(_table(setting, results))
    if first_setting is None:
        raise ScenarioError(f"{spec.name}: the axes of `compare:` are empty")
    return Comparison(
        scenario=spec.name,
        description=spec.description,
        model=session.model.name,
        cluster=first_setting.cluster.name,
        tables=tuple(tables),
        constants=constants_of(first_setting),
        provenance=_provenance(spec, session, version),
        wall_s=time.perf_counter() - started,
    )


def simulate(session: Session, setting: Setting, plan: Plan) -> RunResult:
    """One plan: solve, check memory, reduce, price, execute, measure."""
    placement = solve_placement(setting, plan.placement)
    memory = device_memory(setting, placement, session.spec.memory)
    check_memory(memory, setting, placement)
    schedule = plan.schedule
    reduction = session.reduction(setting, placement, schedule)
    execution = execute_schedule(setting, placement, reduction, schedule)
    begins_s = replay(execution.step_times_s, schedule.step_overhead)
    typical = int(np.argsort(execution.step_times_s, kind="stable")[setting.batches.n_steps // 2])
    tokens = np.repeat(tokens_by_rank(placement, reduction.slot_tokens), setting.layout.tp, axis=2)
    n_steps = setting.batches.n_steps
    by_step = tokens.reshape(len(tokens), n_steps, -1, *tokens.shape[2:]).sum(axis=2)
    return RunResult(
        name=_name(session.spec, plan, placement),
        plan=_described(plan, placement),
        metrics={
            **measure.time_metrics(execution, begins_s, setting, schedule.step_overhead),
            **measure.load_metrics(setting, placement, reduction),
            **measure.traffic_metrics(setting, reduction, schedule),
            **measure.memory_metrics(memory),
        },
        breakdown_s=measure.breakdown_s(execution, schedule.step_overhead),
        step_times_s=execution.step_times_s + schedule.step_overhead,
        device_tokens=tokens.sum(axis=(1, 3)) / n_steps,
        device_experts=(by_step > 0).sum(axis=(1, 3)) / n_steps,
        layer_imbalance=measure.step_imbalance(placement, reduction).mean(axis=1),
        traffic_bytes=measure.traffic_bytes(setting, reduction, schedule),
        log=step_log(execution.op_list, execution.durations, execution.finished, typical),
        logged_step=typical,
    )


def execute_schedule(setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec) -> Execution:
    """All steps of the setting, priced and executed."""
    step = build_step(setting.model, chunks=reduction.n_chunks, attention_tp=setting.attention_tp)
    op_list = compile_program(POLICIES[schedule.overlap], step)
    durations = price(setting, placement, reduction, schedule.exchange).durations(op_list)
    if schedule.executor == "vector":
        finished = execute(op_list, durations, law=LAWS[schedule.exchange.law])
    else:
        finished = _step_by_step(op_list, durations, setting.batches.n_steps, schedule.exchange.law)
    return Execution(op_list=op_list, durations=durations, finished=finished)


def _step_by_step(op_list: OpList, durations: list[Duration], n_steps: int, law: str) -> Finished:
    """The event executor on every step of a batch."""
    steps = [execute_events(op_list, [_of_step(d, step) for d in durations], law=law) for step in range(n_steps)]
    return Finished(
        end_s=np.stack([step.end_s for step in steps], axis=1),
        send_end_s=[np.stack(rows) for rows in zip(*(step.send_end_s for step in steps), strict=True)],
    )


def _of_step(duration: Duration, step: int) -> Duration:
    if not isinstance(duration, ExchangeTime):
        row: Seconds = duration[step]
        return row
    return ExchangeTime(
        send_s=duration.send_s[step],
        receive_s=duration.receive_s[step],
        group_size=duration.group_size,
        message_s=None if duration.message_s is None else duration.message_s[step],
        latency_s=duration.latency_s,
    )


def _table(setting: Setting, results: list[RunResult]) -> Table:
    workload = setting.workload
    title = f"{workload.phase}, {workload.tokens_per_device} tokens per device"
    names = [result.name for result in results]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ScenarioError(f"compare: several plans are called {', '.join(twice)}; give them a `name:`")
    return Table(
        title=title,
        workload=workload.model_dump(exclude_none=True),
        results=tuple(sorted(results, key=lambda result: result.metrics["step_time_s"])),
        first=results[0].name,
        moe_layers=setting.model.moe_layers,
        devices_per_node=setting.cluster.devices_per_node,
        notes=_notes(setting),
    )


def _notes(setting: Setting) -> tuple[str, ...]:
    origin, batches = setting.trace.provenance, setting.batches
    notes = [
        f"Trace: {origin.model}, {origin.kind}, {setting.trace.n_tokens:,} tokens in {setting.trace.n_sequences:,} "
        f"sequences; {origin.source}.",
        f"Plans fitted on {setting.fit_sequences} sequences and judged on {setting.judged_sequences} others "
        f"({batches.n_steps} steps, {batches.passes:.2f} passes)."
        if setting.fit_sequences
        else "Plans were fitted on the very sequences that judge them: the split leaves nothing to fit on.",
        f"Batches: {batches.discipline}.",
    ]
    if origin.kind == "synthetic":
        notes.insert(0, "The routing is synthetic: rankings hold for its statistics, not for a captured model.")
    return tuple(notes)


def _name(spec: ScenarioSpec, plan: Plan, placement: Placement) -> str:
    """The parts of a plan that vary in this scenario, as a row's name."""
    axes = spec.compare or CompareSpec()
    parts = [_placement_name(plan.placement, placement)] if axes.placement or not _varies(axes) else []
    if len(axes.schedule) > 1:
        parts.append(plan.schedule.name or _schedule_name(plan.schedule))
    if len(axes.parallel) > 1:
        parts.append(_parallel_name(plan.parallel))
    if len(axes.cluster) > 1:
        parts.append(f"{plan.cluster.nodes} x {plan.cluster.node}")
    return ", ".join(parts)


def _varies(axes: CompareSpec) -> bool:
    return max(len(axes.schedule), len(axes.parallel), len(axes.cluster)) > 1


def _placement_name(spec: PlacementSpec, placement: Placement) -> str:
    if spec.name is not None:
        return spec.name
    return placement.name if spec.split == "even" else f"{placement.name} {spec.split}"


def _schedule_name(schedule: ScheduleSpec) -> str:
    name = "sequential" if schedule.overlap == "none" else f"{schedule.overlap} x{schedule.chunks}"
    law = schedule.exchange.law
    return name if law == "port" else f"{name} ({law})"


def _parallel_name(parallel: ParallelSpec) -> str:
    attention = "" if parallel.attention is None else f"DP{parallel.attention.dp} TP{parallel.attention.tp} "
    experts = "" if parallel.experts is None else f"EP{parallel.experts.ep} ETP{parallel.experts.tp}"
    return f"{attention}{experts}".strip() or "default layout"


def _described(plan: Plan, placement: Placement) -> dict[str, Any]:
    described = {
        name: getattr(plan, name).model_dump(exclude_none=True)
        for name in ("cluster", "parallel", "placement", "schedule")
    }
    return described | {"slots_per_layer": placement.n_slots, "wasted_slots": int(placement.duplicate_slots().sum())}


def _provenance(spec: ScenarioSpec, session: Session, version: str) -> dict[str, Any]:
    digests = {
        key.split()[0]: hashlib.sha256(trace.ids[0].tobytes()).hexdigest()[:16] for key, trace in session.traces.items()
    }
    return {
        "moesim": version,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "simpy": simpy.__version__,
        "seed": spec.seed,
        "scenario": hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16],
        "trace_layer_0": digests,
    }
