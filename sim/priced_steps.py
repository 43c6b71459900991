"""The steps of a plan, priced: which works a schedule, a layout and a memory make of them, and how long each takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from placement.moves import Fetch
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import MemorySpec
from sim.execution import executed
from sim.forward import build_step
from sim.kernel_pricing import machine_of
from sim.launches import launched_eagerly, slowed_by_engine
from sim.metrics import Execution
from sim.moving import fetch_in, move_prices, moving
from sim.offload.offloaded import Offloaded, from_host, offloaded_of
from sim.payload import encode_prices, payload_prices, wrapped
from sim.pim_pricing import near, with_units
from sim.policies import MICROBATCHED, POLICIES, SPLIT_ATTENTION, STREAMS, TILED
from sim.policies.cached import cached
from sim.policies.near_memory import near_memory
from sim.pricing import Prices, price
from sim.program import OpList, Step, compile_program
from sim.setting import Setting
from sim.stream.prices import ring_prices
from sim.stream.works import ringed
from sim.tile_pricing import tile_prices
from sim.training_program import check_training, train_program


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The judged steps of a setting under a placement, reduced for a schedule."""

    setting: Setting
    placement: Placement
    reduction: Reduction
    schedule: ScheduleSpec
    memory: MemorySpec = field(default_factory=MemorySpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedSteps:
    """Their program and its prices; `fetch` where experts move, `offloaded` where they live in the host's memory."""

    steps: Steps
    op_list: OpList
    prices: Prices
    fetch: Fetch | None
    offloaded: Offloaded | None

    def executed(self) -> Execution:
        """All steps, executed."""
        return executed(self.op_list, self.prices, self.steps.schedule)


def execute_schedule(setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec) -> Execution:
    """All steps of a setting with its experts on the devices, priced and executed."""
    steps = Steps(setting=setting, placement=placement, reduction=reduction, schedule=schedule)
    return priced(steps).executed()


def priced(steps: Steps) -> PricedSteps:
    """The steps with their prices. Raises ScenarioError where what they say does not go together."""
    setting, placement, reduction, schedule = steps.setting, steps.placement, steps.reduction, steps.schedule
    spec = steps.memory.offload
    offloaded = None if spec is None else offloaded_of(setting, placement, reduction, schedule, spec)
    if setting.trains:
        check_training(schedule, setting.model, offloads=offloaded is not None)
    fetch = fetch_in(setting, placement, reduction, schedule)
    step, prices = _works(steps, fetch)
    if setting.trains:
        op_list, prices = train_program(setting, placement, schedule, step, prices)
    elif offloaded is not None:
        step, prices = from_host(step, prices, offloaded, (setting, placement, reduction, schedule))
        op_list = compile_program(cached, step)
    elif schedule.pim != "none":
        step = near(step, setting, schedule)
        prices = with_units(prices, setting, placement, reduction, schedule)
        op_list = compile_program(near_memory, step)
    else:
        op_list = compile_program((POLICIES | STREAMS)[schedule.overlap], step)
    if schedule.launch == "eager":
        prices = launched_eagerly(prices, setting, schedule)
    return PricedSteps(steps=steps, op_list=op_list, prices=prices, fetch=fetch, offloaded=offloaded)


def _works(steps: Steps, fetch: Fetch | None) -> tuple[Step, Prices]:
    """The works of a forward pass and their prices, with what the schedule adds to or changes of them."""
    setting, placement, reduction, schedule = steps.setting, steps.placement, steps.reduction, steps.schedule
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
    prices = slowed_by_engine(prices, schedule)
    if tiling is not None:
        prices = tile_prices(prices, setting, reduction, schedule, tiling)
    if schedule.payload is not None:
        step = wrapped(step, "compress", "restore")
        prices = prices.plus(payload_prices(setting, schedule.payload, len(step.microbatches)))
    if schedule.encode == "einsum":
        step = wrapped(step, "encode", "decode")
        prices = prices.plus(encode_prices(setting, len(step.microbatches)))
    if reduction.moves is not None and fetch is not None:
        step = moving(step, reduction.moves)
        machine = machine_of(setting, schedule.exchange)
        prices = prices.plus_chunks(move_prices(machine, placement, reduction.moves, fetch))
    if steps.memory.stream is not None:
        step = ringed(step, steps.memory.stream)
        prices = prices.plus_chunks({"page": ring_prices(setting, steps.memory.stream)})
    return step, prices
