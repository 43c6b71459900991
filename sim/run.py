"""From a scenario to results: `run` simulates its own plan, `compare` every combination of its axes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from pathlib import Path

from placement.plan import Placement
from scenarios.errors import MemoryInfeasible, PlacementInfeasible, ScenarioError
from scenarios.serving_specs import ServingSpec
from scenarios.specs import CompareSpec, ScenarioSpec
from scenarios.stream_specs import GENERATING
from sim import metrics as measure
from sim.bands import UNREAD, step_band
from sim.batch_measures import former_metrics
from sim.coherent import context_bytes
from sim.constants import constants_of, stage_constants
from sim.describe import described, plan_name, provenance
from sim.elastic.serve import serve_changing_plan
from sim.energy import cost_metrics, energy_metrics, served_energy_and_cost
from sim.engine import replay
from sim.execution import executed
from sim.expert_widths import width_metrics
from sim.memory import DeviceMemory, check_memory, with_all_contexts, with_copies
from sim.metrics import Execution
from sim.moving import moved_bytes
from sim.offload.measures import offload_metrics, offload_notes
from sim.offload.tiers import COPIES, READS
from sim.outcome import Outcome, result_of
from sim.pipelines.piped import piped
from sim.pools import on_devices
from sim.priced_steps import PricedSteps, Steps, priced
from sim.ranking import ranked_table
from sim.result import Comparison, Constant, LeftOut, RunResult, Table
from sim.schedule_search import Speed, search
from sim.serving.apart import check_served, serve_plan_apart, side_plan
from sim.serving.simulate import serve_plan
from sim.session import Plan, Session
from sim.setting import Setting, sides_of
from sim.stream.measures import stream_metrics
from sim.stream.memory import checked_memory
from sim.stream.simulate import generated, generation_result
from sim.together import check_together

OF_STEPS = ("step_time_s", "tokens_per_s", "model_error", "exposed_copy_s")
"""Beginnings of metrics that are not those of a served load where only a step of typical size is simulated."""
OF_DEVICES = ("energy_", "cost_")
"""Beginnings of metrics that count devices, and are left out where those of the step shown are not all."""
Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""


def run(spec: ScenarioSpec, base: Path, version: str, unfinished: Path | None = None) -> Comparison:
    """The scenario's own plan, simulated; paths are relative to `base`."""
    return compare(spec.model_copy(update={"compare": CompareSpec()}), base, version, unfinished=unfinished)


def compare(
    spec: ScenarioSpec, base: Path, version: str, progress: Progress | None = None, unfinished: Path | None = None
) -> Comparison:
    """Every plan of the scenario's axes, simulated on the same steps and ranked, one table a workload.

    unfinished  folder from which served loads that were interrupted go on, and to which they write.
    Plans that do not fit are left out, with the reason. Raises MemoryInfeasible where none does,
    ScenarioError where the scenario has no axes, and what the stages raise.
    """
    if spec.compare is None:
        raise ScenarioError(f"{spec.name}: no `compare:` section; add its axes, or use `moesim run`")
    return compare_in(Session(spec, base, unfinished=unfinished), spec.compare, version, progress)


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
        axes.training or [spec.training],
        axes.bits or [spec.bits],
    )
    plans = [
        Plan(cluster=c, parallel=p, placement=e, schedule=s, memory=m, serving=load, training=t, bits=b)
        for c, p, e, s, m, load, t, b in combinations
    ]
    workloads = axes.workload or (spec.workload,)
    tables: list[Table] = []
    for workload in workloads:
        tried: list[RunResult | LeftOut] = []
        for plan in plans:
            setting = session.setting(plan.cluster, plan.parallel, workload, plan.training, plan.bits)
            tried.append(_tried(session, setting, plan, alone=len(plans) == 1))
            if progress is not None:
                done = len(tables) * len(plans) + len(tried)
                progress(tried[-1].name, done / (len(plans) * len(workloads)))
        tables.append(ranked_table(spec, setting, tried))
    settings = [side for setting in session.settings.values() for side in sides_of(setting)]
    return Comparison(
        scenario=spec.name,
        description=spec.description,
        model=session.model.name,
        cluster=", ".join(dict.fromkeys(setting.cluster.name for setting in settings)),
        tables=tuple(tables),
        constants=_constants(settings, plans),
        provenance=provenance(spec, session, version),
        wall_s=time.perf_counter() - started,
    )


def _tried(session: Session, setting: Setting, plan: Plan, *, alone: bool) -> RunResult | LeftOut:
    """A plan simulated, or why it cannot be; a plan `alone` raises what it is short of."""
    try:
        return simulate(session, setting, plan)
    except (MemoryInfeasible, PlacementInfeasible) as error:
        if alone:
            raise
        return LeftOut(name=_name_of(session, setting, plan), reason=str(error))


def _name_of(session: Session, setting: Setting, plan: Plan) -> str:
    """The name of a plan that cannot be simulated; its solver's where not even a placement exists."""
    try:
        return plan_name(session.spec, plan, session.plan_of(setting, plan).placement)
    except PlacementInfeasible:
        return plan.placement.name or plan.placement.solver


def _constants(settings: Sequence[Setting], plans: Sequence[Plan]) -> tuple[Constant, ...]:
    """All that the plans rest on, each once."""
    kernels = {one.exchange.kernel for plan in plans for one in plan.schedule.search or (plan.schedule,)}
    hosts = any(plan.memory.offload is not None or plan.memory.stream is not None for plan in plans)
    stages = [plan.serving.stages for plan in plans if plan.serving is not None and plan.serving.changes]
    drives = sorted({plan.memory.offload.ssd for plan in plans if plan.memory.offload and plan.memory.offload.ssd})
    found = [constants_of(setting, kernels, hosts=hosts, drives=drives) for setting in settings]
    return tuple(dict.fromkeys(chain(*found, *map(stage_constants, stages))))


def simulate(session: Session, setting: Setting, plan: Plan) -> RunResult:
    """One plan, with the best schedule where its own is a search; under load where it serves requests."""
    for one in plan.schedule.search or (plan.schedule,):
        check_together(setting, replace(plan, schedule=one))
    if plan.serving is not None:
        return _served(session, plan, plan.serving)
    if not plan.schedule.search:
        return _timed(session, setting, plan)[1]()
    found, result_of_best = search(
        plan.schedule.search, lambda one: _timed(session, setting, replace(plan, schedule=one))
    )
    result = result_of_best()
    name = plan_name(session.spec, plan, session.plan_of(setting, plan).placement)
    return replace(
        result, name=name, plan={**result.plan, "search": found.as_json()}, notes=(found.sentence(), *result.notes)
    )


def _timed(session: Session, setting: Setting, plan: Plan) -> tuple[Speed, Callable[[], RunResult]]:
    """The speed of a plan, host time included, and what measures all else of it."""
    if plan.schedule.overlap in GENERATING:
        made = generated(session, setting, plan)
        speed = Speed(step_time_s=made.times["step_time_s"], tokens_per_s=made.times["tokens_per_s"])
        return speed, lambda: generation_result(session, plan, made)
    placement = session.plan_of(setting, plan).placement
    if setting.n_stages > 1 or setting.workload.microbatches is not None:
        result = piped(session, setting, plan, placement, partial(_simulated, session))
        metrics = result.metrics
        return Speed(step_time_s=metrics["step_time_s"], tokens_per_s=metrics["tokens_per_s"]), lambda: result
    ran = _ran(session, setting, plan, placement)
    step_s = float(ran.execution.step_times_s.mean()) + plan.schedule.step_overhead
    n_tokens = setting.cluster.n_devices * setting.n_groups * setting.workload.tokens_per_device
    return Speed(step_time_s=step_s, tokens_per_s=n_tokens / step_s), lambda: _measured(session, plan, ran)


def _served(session: Session, plan: Plan, spec: ServingSpec) -> RunResult:
    """Requests served by the plan; what its devices do is shown of a step of typical size."""
    check_served(plan)

    def step_s(plan: Plan, setting: Setting) -> float:
        steps = _steps(session, setting, plan, session.plan_of(setting, plan).placement)
        return float(priced(steps).executed().step_times_s.mean())

    serve = serve_changing_plan if spec.changes else serve_plan if spec.prefill is None else serve_plan_apart
    load = serve(session, plan, spec, step_s)
    if spec.prefill is not None:
        plan = side_plan(session, plan, spec.decode)
    shown = _simulated(session, load.typical, plan, session.plan_of(load.typical, plan).placement)
    others = OF_STEPS if spec.prefill is None else (*OF_STEPS, *OF_DEVICES)
    kept = {name: value for name, value in shown.metrics.items() if not name.startswith(others)}
    metrics, history = load.metrics | kept, load.served.history
    if spec.prefill is None:
        metrics |= served_energy_and_cost(load.typical, session.spec.prices, metrics)
    changes = {} if history is None else {"changes": [change.as_json() for change in history.changes]}
    return replace(
        shown,
        plan=shown.plan | {"serving": spec.model_dump(exclude_none=True)} | changes,
        metrics=metrics,
        notes=load.notes,
        served=load.served,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """A plan after its execution: what its metrics are computed from."""

    memory: DeviceMemory
    priced: PricedSteps
    execution: Execution


def _simulated(session: Session, setting: Setting, plan: Plan, placement: Placement) -> RunResult:
    """One plan without a pipeline, executed and measured."""
    return _measured(session, plan, _ran(session, setting, plan, placement))


def _ran(session: Session, setting: Setting, plan: Plan, placement: Placement) -> _Ran:
    """One plan: check memory, reduce, price, execute."""
    memory = checked_memory(setting, placement, plan, spills=session.spills)
    steps = _steps(session, setting, plan, placement)
    if steps.reduction.located is not None:
        memory = with_all_contexts(memory, setting.n_devices)
        check_memory(memory, setting, placement)
    if steps.reduction.moves is not None:
        buffers = 2 if plan.schedule.overlap == "prefetch" else 1
        memory = with_copies(memory, steps.reduction.moves, setting.model, buffers=buffers)
        if not session.spills:
            check_memory(memory, setting, placement)
    ready = priced(steps)
    return _Ran(memory=memory, priced=ready, execution=ready.executed())


def _steps(session: Session, setting: Setting, plan: Plan, placement: Placement) -> Steps:
    return Steps(
        setting=setting,
        placement=placement,
        reduction=session.reduction(setting, placement, plan.schedule),
        schedule=plan.schedule,
        memory=plan.memory,
    )


def _measured(session: Session, plan: Plan, ran: _Ran) -> RunResult:
    """The result of an executed plan."""
    steps = ran.priced.steps
    setting, placement, reduction, schedule = steps.setting, steps.placement, steps.reduction, steps.schedule
    execution = on_devices(ran.execution, setting)
    band = step_band(setting, ran.priced.prices, ran.priced.op_list, schedule) if session.banded else UNREAD
    begins_s = replay(execution.step_times_s, schedule.step_overhead)
    times = measure.time_metrics(execution, begins_s, setting, schedule.step_overhead)
    energy = energy_metrics(setting, placement, reduction, schedule, times["tokens_per_s"])
    outcome = Outcome(
        setting=setting, placement=placement, reduction=reduction, schedule=schedule, execution=ran.execution
    )
    experts, contexts = moved_bytes(setting, ran.priced.fetch), context_bytes(setting, schedule)
    moved = experts[0] + contexts[0], experts[1] + contexts[1]
    metrics = {
        **times,
        **energy,
        **cost_metrics(setting, session.spec.prices, times | energy),
        **measure.training_metrics(execution, setting, reduction, schedule.step_overhead),
        **measure.error_metrics(times, band, schedule.step_overhead),
        **measure.load_metrics(setting, placement, reduction),
        **former_metrics(setting, placement),
        **measure.route_metrics(setting),
        **width_metrics(setting, placement, reduction),
        **measure.traffic_metrics(setting, reduction, schedule, moved),
        **measure.memory_metrics(ran.memory),
        **_offload_metrics(ran),
        **({} if plan.memory.stream is None else stream_metrics(execution)),
    }
    result = result_of(outcome, plan_name(session.spec, plan, placement), described(plan, placement), metrics)
    return replace(result, notes=offload_notes(plan.memory.offload))


def _offload_metrics(ran: _Ran) -> dict[str, float]:
    """What the slots did, and how much of the step their copies cost: the step again with copies that take no time."""
    if ran.priced.offloaded is None:
        return {}
    free = ran.priced.prices.times(dict.fromkeys((*COPIES, *READS), 0.0))
    free_s = executed(ran.priced.op_list, free, ran.priced.steps.schedule).step_times_s
    return offload_metrics(ran.priced.offloaded, ran.execution, free_s)
