"""From a scenario to results: `run` simulates its own plan, `compare` every combination of its axes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from placement.moe_time import worked_tokens
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import CompareSpec, ScenarioSpec
from sim import metrics as measure
from sim.bands import step_band
from sim.constants import constants_of
from sim.describe import described, notes, plan_name, provenance, table_title
from sim.durations import Duration, at_steps
from sim.engine import replay
from sim.events import execute_events
from sim.kernel_pricing import machine_of
from sim.launches import launched_eagerly, slowed_by_engine
from sim.laws import LAWS
from sim.log import step_log
from sim.memory import check_host, check_memory, device_memory, with_copies
from sim.metrics import Execution
from sim.moving import move_prices, moved_bytes, moving
from sim.offload.measures import offload_metrics
from sim.offload.offloaded import Offloaded, offloaded_of, serving
from sim.offload.prices import COPIES
from sim.payload import compressing, payload_prices
from sim.policies import MICROBATCHED, POLICIES, SPLIT_ATTENTION, TILED
from sim.policies.cached import cached
from sim.port_loads import port_loads
from sim.pricing import Prices, price
from sim.program import OpList, compile_program
from sim.result import Comparison, RunResult, Table
from sim.schedule_search import search
from sim.session import Plan, Session
from sim.setting import Setting, build_step
from sim.tile_pricing import tile_prices
from sim.vector import Finished, execute

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""


def run(spec: ScenarioSpec, base: Path, version: str) -> Comparison:
    """The scenario's own plan, simulated; paths are relative to `base`."""
    return compare(spec.model_copy(update={"compare": CompareSpec()}), base, version)


def compare(spec: ScenarioSpec, base: Path, version: str, progress: Progress | None = None) -> Comparison:
    """Every plan of the scenario's axes, simulated on the same steps and ranked, one table a workload.

    Raises ScenarioError where the scenario has no axes, and what the stages raise.
    """
    if spec.compare is None:
        raise ScenarioError(f"{spec.name}: no `compare:` section; add its axes, or use `moesim run`")
    return compare_in(Session(spec, base), spec.compare, version, progress)


def compare_in(session: Session, axes: CompareSpec, version: str, progress: Progress | None = None) -> Comparison:
    """Every plan of `axes` over the session's scenario, as `compare` simulates them."""
    started = time.perf_counter()
    spec = session.spec
    combinations = product(
        axes.cluster or [spec.cluster],
        axes.parallel or [spec.parallel],
        axes.placement or [spec.placement],
        axes.schedule or [spec.schedule],
        axes.memory or [spec.memory],
    )
    plans = [Plan(cluster=c, parallel=p, placement=e, schedule=s, memory=m) for c, p, e, s, m in combinations]
    workloads = axes.workload or (spec.workload,)
    tables: list[Table] = []
    for workload in workloads:
        results = []
        for plan in plans:
            setting = session.setting(plan.cluster, plan.parallel, workload)
            results.append(simulate(session, setting, plan))
            if progress is not None:
                done = len(tables) * len(plans) + len(results)
                progress(results[-1].name, done / (len(plans) * len(workloads)))
        tables.append(_table(spec, setting, results))
    settings = session.settings.values()
    kernels = {one.exchange.kernel for plan in plans for one in plan.schedule.search or (plan.schedule,)}
    hosts = any(plan.memory.offload is not None for plan in plans)
    return Comparison(
        scenario=spec.name,
        description=spec.description,
        model=session.model.name,
        cluster=", ".join(dict.fromkeys(setting.cluster.name for setting in settings)),
        tables=tuple(tables),
        constants=tuple(dict.fromkeys(c for setting in settings for c in constants_of(setting, kernels, hosts=hosts))),
        provenance=provenance(spec, session, version),
        wall_s=time.perf_counter() - started,
    )


def simulate(session: Session, setting: Setting, plan: Plan) -> RunResult:
    """One plan, with the best schedule where its own is a search."""
    if not plan.schedule.search:
        return _simulated(session, setting, plan)
    found = search(plan.schedule.search, lambda one: _mean_step_s(session, setting, replace(plan, schedule=one)))
    result = _simulated(session, setting, replace(plan, schedule=found.chosen))
    name = plan_name(session.spec, plan, session.plan_of(setting, plan).placement)
    return replace(result, name=name, plan={**result.plan, "search": found.as_json()}, notes=(found.sentence(),))


def _mean_step_s(session: Session, setting: Setting, plan: Plan) -> float:
    """Mean step time of a plan, host time included [s]."""
    placement = session.plan_of(setting, plan).placement
    reduction = session.reduction(setting, placement, plan.schedule)
    offloaded = _offloaded(setting, placement, reduction, plan)
    execution = execute_schedule(setting, placement, reduction, plan.schedule, offloaded)
    return float(execution.step_times_s.mean()) + plan.schedule.step_overhead


def _simulated(session: Session, setting: Setting, plan: Plan) -> RunResult:
    """One plan: solve, check memory, reduce, price, execute, measure."""
    placement = session.plan_of(setting, plan).placement
    memory = device_memory(setting, placement, plan.memory)
    check_memory(memory, setting, placement)
    check_host(setting, placement, plan.memory)
    schedule = plan.schedule
    reduction = session.reduction(setting, placement, schedule)
    if reduction.moves is not None:
        buffers = 2 if schedule.overlap == "prefetch" else 1
        memory = with_copies(memory, reduction.moves, setting.model, buffers=buffers)
        check_memory(memory, setting, placement)
    offloaded = _offloaded(setting, placement, reduction, plan)
    op_list, prices = _priced(setting, placement, reduction, schedule, offloaded)
    execution = _executed(op_list, prices, setting, schedule)
    band = step_band(setting, prices, op_list, schedule)
    begins_s = replay(execution.step_times_s, schedule.step_overhead)
    times = measure.time_metrics(execution, begins_s, setting, schedule.step_overhead)
    typical = int(np.argsort(execution.step_times_s, kind="stable")[setting.batches.n_steps // 2])
    tokens = np.repeat(worked_tokens(placement, reduction), setting.layout.tp, axis=2)
    n_steps = setting.batches.n_steps
    by_step = tokens.reshape(len(tokens), n_steps, -1, *tokens.shape[2:]).sum(axis=2)
    return RunResult(
        name=plan_name(session.spec, plan, placement),
        plan=described(plan, placement),
        metrics={
            **times,
            **measure.error_metrics(times, band, schedule.step_overhead),
            **measure.load_metrics(setting, placement, reduction),
            **measure.traffic_metrics(
                setting, reduction, schedule, moved_bytes(setting, placement, reduction, schedule)
            ),
            **measure.memory_metrics(memory),
            **_offload_metrics(setting, offloaded, execution, prices, schedule),
        },
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


def execute_schedule(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    schedule: ScheduleSpec,
    offloaded: Offloaded | None = None,
) -> Execution:
    """All steps of the setting, priced and executed."""
    return _executed(*_priced(setting, placement, reduction, schedule, offloaded), setting, schedule)


def _offloaded(setting: Setting, placement: Placement, reduction: Reduction, plan: Plan) -> Offloaded | None:
    spec = plan.memory.offload
    return None if spec is None else offloaded_of(setting, placement, reduction, plan.schedule, spec)


def _offload_metrics(
    setting: Setting, offloaded: Offloaded | None, execution: Execution, prices: Prices, schedule: ScheduleSpec
) -> dict[str, float]:
    """What the slots did, and how much of the step their copies cost: the step again with copies that take no time."""
    if offloaded is None:
        return {}
    free = _executed(execution.op_list, prices.times(dict.fromkeys(COPIES, 0.0)), setting, schedule)
    return offload_metrics(offloaded, execution, free.step_times_s)


def _priced(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    schedule: ScheduleSpec,
    offloaded: Offloaded | None = None,
) -> tuple[OpList, Prices]:
    microbatched, tiling = schedule.overlap in MICROBATCHED, TILED.get(schedule.overlap)
    step = build_step(
        setting.model,
        chunks=schedule.n_chunks,
        attention_tp=setting.attention_tp,
        microbatched=microbatched,
        split_attention=schedule.overlap in SPLIT_ATTENTION,
        tiling=tiling,
        exchange=schedule.exchange,
    )
    prices = price(setting, placement, reduction, schedule.exchange, microbatched=microbatched)
    prices = slowed_by_engine(prices, schedule)
    if tiling is not None:
        prices = tile_prices(prices, setting, reduction, schedule, tiling)
    if schedule.payload is not None:
        step = compressing(step)
        prices = prices.plus(payload_prices(setting, schedule.payload, len(step.microbatches)))
    if reduction.moves is not None:
        step = moving(step, reduction.moves)
        machine = machine_of(setting, schedule.exchange)
        prices = prices.plus_chunks(move_prices(setting, placement, reduction.moves, machine))
    policy = POLICIES[schedule.overlap]
    if offloaded is not None:
        step, prices = serving(step, prices, offloaded, (setting, placement, reduction, schedule))
        policy = cached
    op_list = compile_program(policy, step)
    return op_list, launched_eagerly(prices, setting, schedule) if schedule.launch == "eager" else prices


def _executed(op_list: OpList, prices: Prices, setting: Setting, schedule: ScheduleSpec) -> Execution:
    durations = prices.durations(op_list)
    if schedule.executor == "vector":
        finished = execute(op_list, durations, law=LAWS[schedule.exchange.law])
    else:
        finished = _step_by_step(op_list, durations, setting.batches.n_steps, schedule.exchange.law)
    return Execution(op_list=op_list, durations=durations, finished=finished)


def _step_by_step(op_list: OpList, durations: list[Duration], n_steps: int, law: str) -> Finished:
    """The event executor on every step of a batch."""
    steps = [execute_events(op_list, [at_steps(d, step) for d in durations], law=law) for step in range(n_steps)]
    return Finished(
        end_s=np.stack([step.end_s for step in steps], axis=1),
        send_end_s=[np.stack(rows) for rows in zip(*(step.send_end_s for step in steps), strict=True)],
    )


def _table(spec: ScenarioSpec, setting: Setting, results: list[RunResult]) -> Table:
    names = [result.name for result in results]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ScenarioError(f"compare: several plans are called {', '.join(twice)}; give them a `name:`")
    return Table(
        title=table_title(setting.workload, spec),
        workload=setting.workload.model_dump(exclude_none=True),
        results=tuple(sorted(results, key=lambda result: -result.metrics["tokens_per_s"])),
        first=results[0].name,
        moe_layers=setting.model.moe_layers,
        notes=(*notes(setting), *(note for result in results for note in result.notes)),
    )
