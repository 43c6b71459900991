"""From a scenario to results: `run` simulates its own plan, `compare` every combination of its axes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.serving_specs import ServingSpec
from scenarios.specs import CompareSpec, ScenarioSpec
from scenarios.stream_specs import GENERATING, StreamSpec
from sim import metrics as measure
from sim.bands import step_band
from sim.constants import constants_of
from sim.describe import described, notes, plan_name, provenance, table_title
from sim.engine import replay
from sim.execution import executed
from sim.kernel_pricing import machine_of
from sim.launches import launched_eagerly, slowed_by_engine
from sim.memory import check_memory, with_copies
from sim.metrics import Execution
from sim.moving import move_prices, moved_bytes, moving
from sim.offload.measures import offload_metrics
from sim.offload.offloaded import Offloaded, offloaded_of, serving
from sim.offload.prices import COPIES
from sim.outcome import Outcome, result_of
from sim.payload import compressing, payload_prices
from sim.policies import MICROBATCHED, POLICIES, SPLIT_ATTENTION, STREAMS, TILED
from sim.policies.cached import cached
from sim.pricing import Prices, price
from sim.program import OpList, compile_program
from sim.result import LATENCIES, Comparison, RunResult, Table
from sim.schedule_search import Speed, search
from sim.serving.simulate import serve_plan
from sim.session import Plan, Session
from sim.setting import Setting, build_step
from sim.stream.measures import stream_metrics
from sim.stream.memory import checked_memory
from sim.stream.prices import ring_prices
from sim.stream.simulate import generation_speed, simulate_generation
from sim.stream.works import ringed
from sim.tile_pricing import tile_prices
from sim.training_program import check_training, train_program

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
    hosts = any(plan.memory.offload is not None or plan.memory.stream is not None for plan in plans)
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
    found = search(plan.schedule.search, lambda one: _speed(session, setting, replace(plan, schedule=one)))
    result = _simulated(session, setting, replace(plan, schedule=found.chosen))
    name = plan_name(session.spec, plan, session.plan_of(setting, plan).placement)
    return replace(result, name=name, plan={**result.plan, "search": found.as_json()}, notes=(found.sentence(),))


def _speed(session: Session, setting: Setting, plan: Plan) -> Speed:
    """Mean step time of a plan, host time included [s], and its tokens/s."""
    if plan.schedule.overlap in GENERATING:
        step_s, tokens_per_s = generation_speed(session, setting, plan)
        return Speed(step_time_s=step_s, tokens_per_s=tokens_per_s)
    step_s = float(_execution(session, setting, plan).step_times_s.mean()) + plan.schedule.step_overhead
    n_tokens = setting.layout.n_devices * setting.workload.tokens_per_device
    return Speed(step_time_s=step_s, tokens_per_s=n_tokens / step_s)


def _execution(session: Session, setting: Setting, plan: Plan) -> Execution:
    """All steps of a setting under a plan, executed."""
    placement = session.plan_of(setting, plan).placement
    reduction = session.reduction(setting, placement, plan.schedule)
    offloaded = _offloaded(setting, placement, reduction, plan)
    priced = _priced(setting, placement, reduction, plan.schedule, offloaded, plan.memory.stream)
    return executed(*priced, plan.schedule)


def _served(session: Session, plan: Plan, spec: ServingSpec) -> RunResult:
    """Requests served by the plan; what its devices do is shown of a step of typical size.

    Raises ScenarioError for a search: what is best depends on the iteration.
    """
    if plan.schedule.search:
        raise ScenarioError("serving: a search over schedules has no iteration of its own; name one schedule")
    if plan.schedule.overlap in GENERATING:
        raise ScenarioError(f"serving: {plan.schedule.overlap} generates for all requests at once; leave serving out")
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
    if plan.schedule.overlap in GENERATING:
        return simulate_generation(session, setting, plan)
    placement = session.plan_of(setting, plan).placement
    memory = checked_memory(setting, placement, plan, spills=session.spills)
    schedule = plan.schedule
    reduction = session.reduction(setting, placement, schedule)
    if reduction.moves is not None:
        buffers = 2 if schedule.overlap == "prefetch" else 1
        memory = with_copies(memory, reduction.moves, setting.model, buffers=buffers)
        if not session.spills:
            check_memory(memory, setting, placement)
    offloaded = _offloaded(setting, placement, reduction, plan)
    op_list, prices = _priced(setting, placement, reduction, schedule, offloaded, plan.memory.stream)
    execution = executed(op_list, prices, schedule)
    band = step_band(setting, prices, op_list, schedule)
    begins_s = replay(execution.step_times_s, schedule.step_overhead)
    times = measure.time_metrics(execution, begins_s, setting, schedule.step_overhead)
    outcome = Outcome(setting=setting, placement=placement, reduction=reduction, schedule=schedule, execution=execution)
    metrics = {
        **times,
        **measure.training_metrics(execution, setting, reduction, schedule.step_overhead),
        **measure.error_metrics(times, band, schedule.step_overhead),
        **measure.load_metrics(setting, placement, reduction),
        **measure.traffic_metrics(setting, reduction, schedule, moved_bytes(setting, placement, reduction, schedule)),
        **measure.memory_metrics(memory),
        **_offload_metrics(offloaded, execution, prices, schedule),
        **({} if plan.memory.stream is None else stream_metrics(execution)),
    }
    return result_of(outcome, plan_name(session.spec, plan, placement), described(plan, placement), metrics)


def execute_schedule(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    schedule: ScheduleSpec,
    offloaded: Offloaded | None = None,
) -> Execution:
    """All steps of the setting, priced and executed."""
    return executed(*_priced(setting, placement, reduction, schedule, offloaded), schedule)


def _offloaded(setting: Setting, placement: Placement, reduction: Reduction, plan: Plan) -> Offloaded | None:
    spec = plan.memory.offload
    return None if spec is None else offloaded_of(setting, placement, reduction, plan.schedule, spec)


def _offload_metrics(
    offloaded: Offloaded | None, execution: Execution, prices: Prices, schedule: ScheduleSpec
) -> dict[str, float]:
    """What the slots did, and how much of the step their copies cost: the step again with copies that take no time."""
    if offloaded is None:
        return {}
    free = executed(execution.op_list, prices.times(dict.fromkeys(COPIES, 0.0)), schedule)
    return offload_metrics(offloaded, execution, free.step_times_s)


def _priced(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    schedule: ScheduleSpec,
    offloaded: Offloaded | None = None,
    stream: StreamSpec | None = None,
) -> tuple[OpList, Prices]:
    if setting.trains:
        check_training(schedule, setting.model, offloads=offloaded is not None)
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
    if stream is not None:
        step, prices = ringed(step, stream), prices.plus(ring_prices(setting, stream))
    if setting.trains:
        op_list, prices = train_program(setting, placement, schedule, step, prices)
    elif offloaded is not None:
        step, prices = serving(step, prices, offloaded, (setting, placement, reduction, schedule))
        op_list = compile_program(cached, step)
    else:
        op_list = compile_program((POLICIES | STREAMS)[schedule.overlap], step)
    return op_list, launched_eagerly(prices, setting, schedule) if schedule.launch == "eager" else prices


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
