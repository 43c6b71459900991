"""Passes of the parts of a model, simulated: forward, backward, the pair of both, and the end of a step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from sim.durations import ExchangeTime, Seconds
from sim.execution import executed
from sim.forward import build_step
from sim.kernel_pricing import slowdown_beside_exchange
from sim.metrics import ends_of_parts
from sim.pipelines.parts import Part
from sim.pipelines.times import PassTimes
from sim.policies.paired import paired
from sim.priced_steps import Steps, execute_schedule, priced
from sim.pricing import Prices
from sim.program import Step, compile_program
from sim.setting import Setting
from sim.training import part_of_step, training_step
from sim.weight_gradients import weights_s


def trained_passes(part: Part, reduction: Reduction, schedule: ScheduleSpec) -> PassTimes:
    """Passes of a part that is trained, without the pair of both.

    Microbatches but the last sum no gradients and update nothing; what the last one takes longer ends the step.
    """
    alone = execute_schedule(part.setting, part.placement, reduction, schedule)
    last = execute_schedule(replace(part.setting, updates=True), part.placement, reduction, schedule)
    forward_s, both_s = ends_of_parts(alone)[0], alone.step_times_s
    backward_s = both_s - forward_s
    weight_s = np.minimum(weights_s(part.setting, part.placement, reduction), backward_s)
    return PassTimes(
        forward_s=forward_s,
        backward_input_s=backward_s - weight_s,
        backward_weight_s=weight_s,
        overlapped_s=both_s,
        closing_s=last.step_times_s - both_s,
    )


def paired_s(pair: tuple[Part, Part], reductions: tuple[Reduction, Reduction], schedule: ScheduleSpec) -> Seconds:
    """Time of a forward pass of one part beside a backward pass of another, float64[batch] [s] (see `paired`).

    Each computes beside the exchanges of the other, which slows it where their kernels hold SMs. Raises ScenarioError
    for what the pair does not know: chunks, and weights that are gathered for every layer.
    """
    ahead, back = pair
    if schedule.overlap != "none" or ahead.setting.training.zero == 3:
        raise ScenarioError(
            f"schedule.pipeline: dualpipe hides exchanges behind the other pass itself: overlap none, not "
            f"{schedule.overlap}, and training.zero below 3, not {ahead.setting.training.zero}"
        )
    policy = partial(paired, back=_step(back.setting, schedule))
    op_list = compile_program(policy, _step(ahead.setting, schedule))
    ahead_prices, back_prices = (
        priced(Steps(setting=one.setting, placement=one.placement, reduction=counted, schedule=schedule)).prices
        for one, counted in zip(pair, reductions, strict=True)
    )
    slower = slowdown_beside_exchange(ahead.setting, 2, schedule.exchange)
    own = {
        op.work: (back_prices if part_of_step(op.work.kind) == 1 else ahead_prices).of(op.work) for op in op_list.ops
    }
    slowed = {work: d if isinstance(d, ExchangeTime) else d * slower for work, d in own.items()}
    prices = Prices(per_layer={}, per_chunk={}, windowed_layers=frozenset(), moe_row={}, single=slowed)
    return executed(op_list, prices, schedule).step_times_s


def _step(setting: Setting, schedule: ScheduleSpec) -> Step:
    works = build_step(setting.model, chunks=1, attention_tp=setting.attention_tp, exchange=schedule.exchange)
    return training_step(works, {}, setting.training)
