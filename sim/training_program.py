"""A training step under a schedule: its program, and the prices of what the forward pass does not have."""

from __future__ import annotations

from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.models import ModelCard
from scenarios.schedule_specs import TRAINED, ScheduleSpec
from sim.filling import filled
from sim.gradient_sums import buckets_of, pieces_of, sum_prices
from sim.laws import LAWS
from sim.optimizer import optimizer_prices
from sim.policies import TRAINING
from sim.pricing import Prices
from sim.program import OpList, Step, compile_program
from sim.setting import Setting
from sim.training import training_step

TRAINABLE = ("fp32", "bf16", "fp16", "fp8", "fp8_block")


def train_program(
    setting: Setting, placement: Placement, schedule: ScheduleSpec, step: Step, prices: Prices
) -> tuple[OpList, Prices]:
    """The step's forward pass, trained: what is issued, and for how long.

    Gradients of all microbatches of a step are summed once, those that are divided (ZeRO 2 and 3) after each of them.
    Raises ScenarioError where the schedule has no backward pass, or the cluster lacks a link that is asked for.
    """
    buckets = buckets_of(setting, placement) if setting.updates or setting.training.zero >= 2 else {}
    pieces = pieces_of(setting, buckets, schedule.gradients.partition)
    policy = TRAINING[schedule.overlap, schedule.gradients.order]
    op_list = compile_program(policy, training_step(step, pieces, setting.training))
    own = sum_prices(setting, buckets, pieces) | optimizer_prices(setting, placement, buckets)
    prices = prices.plus_single(own)
    if schedule.gradients.order != "fill":
        return op_list, prices
    return op_list, filled(setting, op_list, prices, buckets, LAWS[schedule.exchange.law])


def check_training(schedule: ScheduleSpec, model: ModelCard, *, offloads: bool = False) -> None:
    """Raise ScenarioError where a schedule has no backward pass, or weights are kept as they are not trained."""
    if offloads:
        raise ScenarioError(
            "memory.offload: experts in the host's memory are not trained; use training.optimizer: {offload: experts}"
        )
    if schedule.overlap not in TRAINED:
        raise ScenarioError(
            f"schedule.overlap: {schedule.overlap} has no backward pass; workload.phase train has {', '.join(TRAINED)}"
        )
    for name in ("move", "payload"):
        if getattr(schedule, name) is not None:
            raise ScenarioError(f"schedule.{name}: has no backward pass; leave it out with workload.phase train")
    if schedule.layer_overhead:
        raise ScenarioError("schedule.layer_overhead: known of forward passes only; use schedule.step_overhead")
    for dtype in (model.weight_dtype, model.expert_dtype):
        if dtype not in (None, *TRAINABLE):
            raise ScenarioError(
                f"model {model.name}: weights in {dtype} are not trained; choose of {', '.join(TRAINABLE)}, such as "
                f"model: {{card: {model.name}, weight_dtype: bf16, expert_dtype: bf16}}"
            )
