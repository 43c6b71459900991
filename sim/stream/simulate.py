"""One plan of offline generation as a result: memory checked, passes executed, their error carried through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.plan import Placement
from placement.reduction import Reduction
from sim import metrics as measure
from sim.bands import UNREAD, StepBand
from sim.describe import described, plan_name
from sim.memory import DeviceMemory
from sim.outcome import Outcome, result_of
from sim.result import RunResult
from sim.session import Plan, Session
from sim.setting import Setting
from sim.stream.bands import generation_band
from sim.stream.generation import Generation, generation_of
from sim.stream.measures import generation_metrics, stream_metrics
from sim.stream.memory import checked_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A plan's setting, with as many requests as its schedule says, its memory, its passes, and their times."""

    setting: Setting
    placement: Placement
    memory: DeviceMemory
    reduction: Reduction
    generation: Generation
    times: dict[str, float]


def generated(session: Session, setting: Setting, plan: Plan) -> Generated:
    """The passes of a plan that generates. Raises MemoryInfeasible where it does not fit."""
    schedule, workload = plan.schedule, setting.workload
    if schedule.microbatch is not None:
        sized = workload.model_copy(update={"tokens_per_device": schedule.microbatch * schedule.chunks})
        setting = session.setting(plan.cluster, plan.parallel, sized, bits=plan.bits)
    placement = session.plan_of(setting, plan).placement
    memory = checked_memory(setting, placement, plan)
    reduction = session.reduction(setting, placement, schedule)
    generation = generation_of(setting, placement, reduction, plan)
    prefill_s, passes_s = generation.times_s()
    requests = setting.workload.tokens_per_device
    return Generated(
        setting=setting,
        placement=placement,
        memory=memory,
        reduction=reduction,
        generation=generation,
        times=generation_metrics(requests, generation.generate, float(prefill_s[0]), passes_s[0]),
    )


def generation_result(session: Session, plan: Plan, made: Generated) -> RunResult:
    """The result of a plan that generates."""
    execution = made.generation.steps.executed()
    band = generation_band(made.generation, made.setting, plan) if session.banded else UNREAD
    outcome = Outcome(
        setting=made.generation.steps.setting,
        placement=made.placement,
        reduction=made.reduction,
        schedule=plan.schedule,
        execution=execution,
    )
    metrics = {
        **made.times,
        **_error_metrics(made.times, band),
        **stream_metrics(execution),
        **measure.load_metrics(made.setting, made.placement, made.reduction),
        **measure.memory_metrics(made.memory),
    }
    return result_of(outcome, plan_name(session.spec, plan, made.placement), described(plan, made.placement), metrics)


def _error_metrics(times: dict[str, float], band: StepBand) -> dict[str, float]:
    """Ends of the 80 % band: that of the time of all passes together, taken for each of them."""
    return {
        "step_time_s.low": times["step_time_s"] * band.low,
        "step_time_s.high": times["step_time_s"] * band.high,
        "tokens_per_s.low": times["tokens_per_s"] / band.high,
        "tokens_per_s.high": times["tokens_per_s"] / max(band.low, np.finfo(float).tiny),
        "model_error": max(1 - band.low, band.high - 1),
    }
