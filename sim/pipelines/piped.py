"""One plan of a pipeline: its parts simulated in full, then composed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from sim.describe import described, plan_name
from sim.memory import DeviceMemory, check_memory, device_memory, stage_memory
from sim.pipelines import PIPELINES
from sim.pipelines.composed import Pipeline, composed, transfers_s
from sim.pipelines.parts import Part, shape_of
from sim.pipelines.passes import paired_s, trained_passes
from sim.pipelines.pipeline import run_pipeline
from sim.pipelines.tasks import Order, PipelineShape, forward_only
from sim.pipelines.times import PassTimes, forward_passes, stage_times
from sim.result import RunResult
from sim.session import Plan, Session
from sim.setting import Setting

Simulated = Callable[[Setting, Plan, Placement], RunResult]


def piped(session: Session, setting: Setting, plan: Plan, placement: Placement, simulated: Simulated) -> RunResult:
    """The plan's result; `simulated` gives that of one part.

    Raises ScenarioError for a pipeline that cannot be, MemoryInfeasible for a stage too full.
    """
    for name in ("offload", "stream"):
        if getattr(plan.memory, name) is not None:
            raise ScenarioError(f"memory.{name}: weights in the host's memory and pipelines do not go together yet")
    shape = shape_of(setting.n_stages, setting.workload, plan.schedule)
    orders = _orders(setting, shape, plan)
    parts = session.parts(setting, placement, shape, plan.parallel.stage_layers)
    memory = _memory(parts, shape, orders, plan)
    for stage in memory if not session.spills else ():
        check_memory(stage, setting, placement)
    alone = replace(plan, schedule=plan.schedule.model_copy(update={"step_overhead": 0.0}))
    results = [simulated(part.setting, alone, part.placement) for part in parts]
    passes = _passes(session, parts, shape, results, alone)
    times = stage_times(passes, shape.n_microbatches, transfers_s(setting, shape))
    return composed(
        Pipeline(
            setting=setting,
            shape=shape,
            schedule=plan.schedule,
            parts=results,
            memory=memory,
            done=run_pipeline(shape, orders, times, plan.schedule.executor),
        ),
        plan_name(session.spec, plan, placement),
        described(plan, placement),
    )


def _orders(setting: Setting, shape: PipelineShape, plan: Plan) -> list[Order]:
    orders = [PIPELINES[plan.schedule.pipeline or "1f1b"](shape, stage) for stage in range(shape.n_stages)]
    return orders if setting.trains else [forward_only(order) for order in orders]


def _memory(parts: Sequence[Part], shape: PipelineShape, orders: Sequence[Order], plan: Plan) -> list[DeviceMemory]:
    """Memory of the devices of every stage."""
    own = [device_memory(part.setting, part.placement, plan.memory) for part in parts]
    return [
        stage_memory({part: own[part] for part in shape.parts_of(stage)}, order) for stage, order in enumerate(orders)
    ]


def _passes(
    session: Session,
    parts: Sequence[Part],
    shape: PipelineShape,
    results: Sequence[RunResult],
    plan: Plan,
) -> list[PassTimes]:
    """Passes of all parts; `results` are those of a microbatch of each."""
    if not parts[0].setting.trains:
        return [forward_passes(result.step_times_s) for result in results]
    reductions: list[Reduction] = [session.reduction(part.setting, part.placement, plan.schedule) for part in parts]
    found = [trained_passes(part, reduction, plan.schedule) for part, reduction in zip(parts, reductions, strict=True)]
    if not shape.bidirectional:
        return found
    pairs = zip(parts, parts[::-1], strict=True), zip(reductions, reductions[::-1], strict=True)
    return [
        replace(one, overlapped_s=paired_s(pair, counted, plan.schedule))
        for one, pair, counted in zip(found, *pairs, strict=True)
    ]
