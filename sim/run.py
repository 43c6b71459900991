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
from scenarios.serving_specs import ServingSpec
from scenarios.specs import CompareSpec, ScenarioSpec
from sim import metrics as measure
from sim.bands import step_band
from sim.constants import constants_of
from sim.describe import described, notes, plan_name, provenance, table_title
from sim.durations import Duration, at_steps
from sim.energy import cost_metrics, energy_metrics
from sim.engine import replay
from sim.events import execute_events
from sim.kernel_pricing import machine_of
from sim.launches import launched_eagerly
from sim.laws import LAWS
from sim.log import step_log
from sim.memory import check_host, check_memory, device_memory, with_copies
from sim.metrics import Execution
from sim.moving import move_prices, moved_bytes, moving
from sim.offload.measures import offload_metrics
from sim.offload.offloaded import Offloaded, offloaded_of, serving
from sim.offload.prices import COPIES
from sim.payload import compressing, payload_prices
from sim.pim_pricing import near, with_units
from sim.policies import MICROBATCHED, POLICIES, SPLIT_ATTENTION, TILED
from sim.policies.cached import cached
from sim.policies.near_memory import near_memory
from sim.port_loads import port_loads
from sim.pricing import Prices, price
from sim.program import OpList, compile_program
from sim.result import LATENCIES, Comparison, RunResult, Table
from sim.schedule_search import search
from sim.serving.simulate import serve_plan
from sim.session import Plan, Session
from sim.setting import Setting, build_step
from sim.tile_pricing import tile_prices
from sim.training_program import check_training, train_program
from sim.vector import Finished, execute

RANKED_BY = ("goodput_tokens_per_s", "e2e_s.mean", "tokens_per_s")
"""Metrics that plans are ranked by, the first that all of them have."""
OF_STEPS = ("step_time_s", "tokens_per_s", "model_error", "exposed_copy_s")
"""Beginnings of metrics that are not those of a served load where only a step of typical size is simulated."""
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
        axes.serving or [spec.serving],
    )
    plans = [
        Plan(cluster=c, parallel=p, placement=e, schedule=s, memory=m, serving=load)
        for c, p, e, s, m, load in combinations
    ]
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
    """One plan, with the best schedule where its own is a search; under load where it serves requests."""
    if plan.serving is not None:
        return _served(session, plan, plan.serving)
    if not plan.schedule.search:
        return _simulated(session, setting, plan)
    found = search(plan.schedule.search, lambda one: _mean_step_s(session, setting, replace(plan, schedule=one)))
    result = _simulated(session, setting, replace(plan, schedule=found.chosen))
    name = plan_name(session.spec, plan, session.plan_of(setting, plan).placement)
    return replace(result, name=name, plan={**result.plan, "search": found.as_json()}, notes=(found.sentence(),))


def _mean_step_s(session: Session, setting: Setting, plan: Plan) -> float:
    """Mean step time of a plan, host time included [s]."""
    return float(_execution(session, setting, plan).step_times_s.mean()) + plan.schedule.step_overhead


def _execution(session: Session, setting: Setting, plan: Plan) -> Execution:
    """All steps of a setting under a plan, executed."""
    placement = session.plan_of(setting, plan).placement
    reduction = session.reduction(setting, placement, plan.schedule)
    offloaded = _offloaded(setting, placement, reduction, plan)
    return execute_schedule(setting, placement, reduction, plan.schedule, offloaded)


def _served(session: Session, plan: Plan, spec: ServingSpec) -> RunResult:
    """Requests served by the plan; what its devices do is shown of a step of typical size.

    Raises ScenarioError for a search: what is best depends on the iteration.
    """
    if plan.schedule.search:
        raise ScenarioError("serving: a search over schedules has no iteration of its own; name one schedule")
    alone = replace(plan, serving=None)
    load = serve_plan(session, plan, spec, lambda setting: _execution(session, setting, alone).step_times_s.mean())
    shown = _simulated(session, load.typical, plan)
    kept = {name: value for name, value in shown.metrics.items() if not name.startswith(OF_STEPS)}
    return replace(
        shown,
        plan=shown.plan | {"serving": spec.model_dump(exclude_none=True)},
        metrics=load.metrics | kept,
        notes=(load.note,),
        served=load.served,
    )


def _simulated(session: Session, setting: Setting, plan: Plan) -> RunResult:
    """One plan: solve, check memory, reduce, price, execute, measure."""
    placement = session.plan_of(setting, plan).placement
    memory = device_memory(setting, placement, plan.memory)
    if not session.spills:
        check_memory(memory, setting, placement)
    check_host(setting, placement, plan.memory)
    schedule = plan.schedule
    reduction = session.reduction(setting, placement, schedule)
    if reduction.moves is not None:
        buffers = 2 if schedule.overlap == "prefetch" else 1
        memory = with_copies(memory, reduction.moves, setting.model, buffers=buffers)
        if not session.spills:
            check_memory(memory, setting, placement)
    offloaded = _offloaded(setting, placement, reduction, plan)
    op_list, prices = _priced(setting, placement, reduction, schedule, offloaded)
    execution = _executed(op_list, prices, setting, schedule)
    band = step_band(setting, prices, op_list, schedule)
    begins_s = replay(execution.step_times_s, schedule.step_overhead)
    times = measure.time_metrics(execution, begins_s, setting, schedule.step_overhead)
    energy = energy_metrics(setting, placement, reduction, schedule, times["tokens_per_s"])
    typical = int(np.argsort(execution.step_times_s, kind="stable")[setting.batches.n_steps // 2])
    tokens = np.repeat(worked_tokens(placement, reduction), setting.layout.tp, axis=2)
    n_steps = setting.batches.n_steps
    by_step = tokens.reshape(len(tokens), n_steps, -1, *tokens.shape[2:]).sum(axis=2)
    return RunResult(
        name=plan_name(session.spec, plan, placement),
        plan=described(plan, placement),
        metrics={
            **times,
            **measure.training_metrics(execution, setting, reduction, schedule.step_overhead),
            **energy,
            **cost_metrics(setting, session.spec.prices, times | energy),
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
    if setting.trains:
        check_training(schedule, setting.model, offloads=offloaded is not None)
    microbatched, tiling = schedule.overlap in MICROBATCHED, TILED.get(schedule.overlap)
    step = build_step(
        setting.model,
        chunks=schedule.n_chunks,
        attention_tp=setting.attention_tp,
        microbatched=microbatched,
        split_attention=schedule.overlap in SPLIT_ATTENTION or schedule.pim != "none",
        tiling=tiling,
        exchange=schedule.exchange,
    )
    prices = price(setting, placement, reduction, schedule.exchange, microbatched=microbatched)
    if tiling is not None:
        prices = tile_prices(prices, setting, reduction, schedule, tiling)
    if schedule.payload is not None:
        step = compressing(step)
        prices = prices.plus(payload_prices(setting, schedule.payload, len(step.microbatches)))
    if reduction.moves is not None:
        step = moving(step, reduction.moves)
        machine = machine_of(setting, schedule.exchange)
        prices = prices.plus_chunks(move_prices(setting, placement, reduction.moves, machine))
    if setting.trains:
        op_list, prices = train_program(setting, placement, schedule, step, prices)
    elif offloaded is not None:
        step, prices = serving(step, prices, offloaded, (setting, placement, reduction, schedule))
        op_list = compile_program(cached, step)
    elif schedule.pim != "none":
        step = near(step, setting, schedule)
        prices = with_units(prices, setting, placement, reduction, schedule)
        op_list = compile_program(near_memory, step)
    else:
        op_list = compile_program(POLICIES[schedule.overlap], step)
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
    ranked_by = next(name for name in RANKED_BY if all(name in result.metrics for result in results))
    sign = 1 if ranked_by in LATENCIES else -1
    return Table(
        title=table_title(setting.workload, spec),
        workload=setting.workload.model_dump(exclude_none=True),
        results=tuple(sorted(results, key=lambda result: sign * result.metrics[ranked_by])),
        ranked_by=ranked_by,
        first=results[0].name,
        moe_layers=setting.model.moe_layers,
        notes=(*notes(setting), *(note for result in results for note in result.notes)),
    )
