"""Passes of the parts of a model, timed by the engine: forward, backward, the pair of both, and the end of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from sim.durations import ExchangeTime, Seconds
from sim.kernel_pricing import slowdown_beside_exchange
from sim.metrics import Execution, ends_of_parts
from sim.pipelines.parts import Part
from sim.pipelines.times import PassTimes
from sim.policies.paired import paired
from sim.pricing import Prices
from sim.program import OpList, Step, compile_program
from sim.result import RunResult
from sim.session import Plan
from sim.setting import Setting, build_step
from sim.training import part_of_step, training_step
from sim.weight_gradients import weights_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How a part is simulated: in full, or only priced and executed; as `sim.run` does it for a whole model."""

    simulated: Callable[[Setting, Plan, Placement], RunResult]
    priced: Callable[[Setting, Placement, Reduction, ScheduleSpec], tuple[OpList, Prices]]
    executed: Callable[[OpList, Prices, ScheduleSpec], Execution]

    def run(self, setting: Setting, part: Part, reduction: Reduction, schedule: ScheduleSpec) -> Execution:
        """All batches of the part in a setting of its own."""
        return self.executed(*self.priced(setting, part.placement, reduction, schedule), schedule)


def trained_passes(engine: Engine, part: Part, reduction: Reduction, schedule: ScheduleSpec) -> PassTimes:
    """Passes of a part that is trained, without the pair of both.

    Microbatches but the last sum no gradients and update nothing; what the last one takes longer ends the step.
    """
    alone = engine.run(part.setting, part, reduction, schedule)
    last = engine.run(replace(part.setting, updates=True), part, reduction, schedule)
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


def paired_s(
    engine: Engine, pair: tuple[Part, Part], reductions: tuple[Reduction, Reduction], schedule: ScheduleSpec
) -> Seconds:
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
    _, ahead_prices = engine.priced(ahead.setting, ahead.placement, reductions[0], schedule)
    _, back_prices = engine.priced(back.setting, back.placement, reductions[1], schedule)
    slower = slowdown_beside_exchange(ahead.setting, 2, schedule.exchange)
    own = {
        op.work: (back_prices if part_of_step(op.work.kind) == 1 else ahead_prices).of(op.work) for op in op_list.ops
    }
    slowed = {work: d if isinstance(d, ExchangeTime) else d * slower for work, d in own.items()}
    prices = Prices(per_layer={}, per_chunk={}, windowed_layers=frozenset(), moe_row={}, single=slowed)
    return engine.executed(op_list, prices, schedule).step_times_s


def _step(setting: Setting, schedule: ScheduleSpec) -> Step:
    works = build_step(setting.model, chunks=1, attention_tp=setting.attention_tp, exchange=schedule.exchange)
    return training_step(works, {}, setting.training)
