"""From a scenario to its bounds: at the scenario's batch, over all batches that fit, and under relaxed hardware."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.offload_specs import OffloadSpec
from scenarios.stream_specs import StreamSpec
from scenarios.workload_specs import WorkloadSpec
from sim.bound.bound import Bound
from sim.bound.grid import BATCHES, Cell, cells
from sim.bound.levers import Lever, Rows, levers, slots_lever
from sim.bound.near import near_resources, near_uses
from sim.bound.order import cuts_tried, device_s, holds, microbatches_of, order_resource
from sim.bound.resources import resources
from sim.bound.stored import served_of, stored_resources
from sim.bound.streamed import requests_in_host, streamed_resources
from sim.memory import DeviceMemory, check_memory, device_memory
from sim.offload.slots import slots_of
from sim.policies import MICROBATCHED
from sim.result import RunResult
from sim.run import simulate
from sim.session import Plan, Session
from sim.setting import Setting, check_plain

LARGEST_BATCH = {"decode": 4096, "prefill": 32_768}  # tokens per device that are tried
LARGEST_GENERATION = 16_384  # requests that are tried
SCAN_STEPS = 4  # steps of a batch that is only tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """All that `moesim bound` found out.

    batches    bounds of other batches, ascending; the largest is what the memory holds, where it limits.
    largest    tokens per device that the memory holds; None where more than was tried fit.
    memory_tokens_per_s_per_gib  what one more GiB a device adds to the bound of the largest batch; None as above.
    simulated  the scenario's own plan and schedule; cut: its microbatches, and its time on every device at least, by
               the kernel laws, of a step in so many [s].
    grid       of decode: bounds over batch and context length, those that do not fit included.
    """

    scenario: str
    setting: Setting
    at: Bound
    levers: tuple[Lever, ...]
    batches: tuple[Bound, ...]
    largest: int | None
    memory_tokens_per_s_per_gib: float | None
    simulated: RunResult
    cut: tuple[int, float]
    grid: tuple[Cell, ...] = ()


def bounds_of(session: Session, progress: Callable[[str, float], None] | None = None) -> Bounds:
    """Bounds of the session's scenario. Raises what the stages of a simulation raise."""
    say = progress or (lambda _what, _share: None)
    spec = session.spec
    plan = Plan.of(spec)
    if plan.serving is not None:
        raise ScenarioError(
            "serving: bounds are of steps of workload.tokens_per_device, not of requests under load; leave serving out"
        )
    setting = session.setting(plan.cluster, plan.parallel, spec.workload, bits=plan.bits)
    check_plain(setting, "moesim bound")
    if setting.n_stages * setting.n_groups > 1:
        raise ScenarioError(
            f"parallel: bounds are of one group of experts that fills the cluster, not of {setting.n_stages} stages of "
            f"{setting.n_groups} groups (pp, edp); take one group's nodes"
        )
    if setting.widths is not None and (plan.memory.offload is not None or plan.schedule.pim != "none"):
        raise ScenarioError(
            "bits: no bound is known of experts in several widths that leave the device (memory.offload, "
            "schedule.pim); leave one of them out"
        )
    if setting.trains:
        raise ScenarioError(
            "workload.phase: bounds are known for decode and prefill; `run` and `compare` simulate train"
        )
    if plan.memory.stream is not None:
        return _streamed(session, setting, plan, plan.memory.stream, say)
    placement = session.plan_of(setting, plan).placement
    memory = device_memory(setting, placement, spec.memory)
    check_memory(memory, setting, placement)
    at = bound_of(session, setting, placement, plan)
    say("simulating the plan", 0.0)
    simulated = simulate(session, setting, plan)
    found = tuple(_levers(session, setting, placement, plan, at.tokens_per_s))
    say("trying batches", 0.3)
    largest = _largest_batch(setting.workload, memory)
    batches = tuple(_scan(session, plan, placement, largest, say))
    extra = None if largest is None else _memory_price(session, plan, placement, memory, batches[-1])
    return Bounds(
        scenario=spec.name,
        setting=setting,
        at=at,
        levers=found,
        batches=batches,
        largest=largest,
        memory_tokens_per_s_per_gib=extra,
        simulated=simulated,
        cut=_cut_of(session, setting, placement, simulated),
        grid=tuple(_grid(session, plan, placement)) if setting.workload.phase == "decode" else (),
    )


def _streamed(
    session: Session, setting: Setting, plan: Plan, stream: StreamSpec, say: Callable[[str, float], None]
) -> Bounds:
    """Bounds of generation: at the most requests of the plan's schedules that fit, and of others up to the host's room.

    Raises ScenarioError where weights stream for steps of another kind.
    """
    generate, schedules = setting.workload.generate, plan.schedule.search or (plan.schedule,)
    if generate is None:
        raise ScenarioError("memory.stream: bounds are of generation; give workload.generate and a schedule of it")
    say("simulating the plan", 0.0)
    simulated = simulate(session, setting, plan)
    asked = {one.microbatch * one.chunks if one.microbatch else setting.workload.tokens_per_device for one in schedules}
    room = requests_in_host(setting, stream, generate)
    most = max(requests for requests in asked if room is None or requests <= room)
    fits = room is not None and room <= LARGEST_GENERATION
    largest = room if fits and room is not None else max(most, LARGEST_GENERATION)
    sizes = [size for size in (4**power for power in range(9)) if size < largest]

    def requests(n: int) -> Setting:
        changed = setting.workload.model_copy(update={"tokens_per_device": n, "steps": SCAN_STEPS})
        return session.setting(plan.cluster, plan.parallel, changed, bits=plan.bits)

    whole = requests(most)
    placement = session.plan_of(whole, plan).placement
    at = bound_of(session, whole, placement, plan)
    found = []
    for number, size in enumerate([*sizes, largest]):
        say(f"trying {size} requests", 0.3 + 0.7 * number / len(sizes))
        found.append(bound_of(session, requests(size), placement, plan))
    return Bounds(
        scenario=session.spec.name,
        setting=whole,
        at=at,
        levers=tuple(levers(whole, rows_of(session, whole, placement, plan), at.tokens_per_s, plan)),
        batches=tuple(found),
        largest=room if fits else None,
        memory_tokens_per_s_per_gib=None,
        simulated=simulated,
        cut=(1, 0.0),
    )


def _cut_of(session: Session, setting: Setting, placement: Placement, simulated: RunResult) -> tuple[int, float]:
    chosen = simulated.plan["schedule"]  # of a search the best one
    number = chosen["chunks"] if chosen["overlap"] in MICROBATCHED else 1
    (cut,) = microbatches_of(session, setting, placement, session.spec.schedule, {number})
    return cut.number, device_s(setting, placement, cut) / setting.cluster.n_devices


def bound_of(session: Session, setting: Setting, placement: Placement, plan: Plan) -> Bound:
    """Rows of a setting under a plan."""
    rows = rows_of(session, setting, placement, plan)(setting)
    return Bound(tokens_per_device=setting.workload.tokens_per_device, rows=rows)


def rows_of(session: Session, setting: Setting, placement: Placement, plan: Plan) -> Rows:
    """The rows of a plan as a function of the setting's hardware; what routing alone decides is found out once."""
    schedule, spec = plan.schedule, plan.memory.offload
    stream = plan.memory.stream
    if stream is not None:
        uncut = schedule.model_copy(update={"overlap": "none", "search": ()})
        passes = session.reduction(setting, placement, uncut)
        return lambda one: streamed_resources(one, placement, passes, schedule.exchange, stream)
    reduction = session.reduction(setting, placement, schedule)
    if schedule.pim != "none":
        uses = near_uses(setting, placement, reduction)
        return lambda one: near_resources(one, placement, reduction, schedule, uses)
    if spec is None and holds(setting, schedule):
        cuts = microbatches_of(session, setting, placement, schedule, cuts_tried(schedule))
        return lambda one: (
            *resources(one, placement, reduction, schedule.exchange),
            order_resource(one, placement, reduction, schedule, cuts),
        )
    if spec is None:
        return lambda one: resources(one, placement, reduction, schedule.exchange)
    served = served_of(setting, placement, reduction, schedule, spec)
    return lambda one: stored_resources(one, placement, reduction, schedule, spec, served)


def _levers(session: Session, setting: Setting, placement: Placement, plan: Plan, base: float) -> Iterator[Lever]:
    spec = plan.memory.offload
    yield from levers(setting, rows_of(session, setting, placement, plan), base, plan)
    if spec is None:
        return
    slots = int(slots_of(placement, spec)[spec.whole_layers :].max(initial=0))
    if slots < placement.slots_per_rank().max():

        def rows(grown: OffloadSpec) -> Rows:
            memory = plan.memory.model_copy(update={"offload": grown})
            return rows_of(session, setting, placement, replace(plan, memory=memory))

        yield slots_lever(setting, rows, spec, slots, base)


def batch_bound(session: Session, plan: Plan, placement: Placement, tokens_per_device: int) -> Bound:
    """Bound of another batch under the same placement, on a few steps."""
    return bound_of(session, batch_setting(session, plan, tokens_per_device), placement, plan)


def best_batch(session: Session, plan: Plan) -> Bound:
    """The batch with the highest bound among those that fit into memory; raises MemoryInfeasible where none does."""
    first = batch_setting(session, plan, 1)
    placement = session.plan_of(first, plan).placement
    memory = device_memory(first, placement, session.spec.memory)
    check_memory(memory, first, placement)
    largest = _largest_batch(first.workload, memory)
    return max(_scan(session, plan, placement, largest), key=lambda bound: bound.tokens_per_s)


def batch_setting(session: Session, plan: Plan, tokens_per_device: int) -> Setting:
    """The setting of another batch, on a few steps."""
    steps = min(session.spec.workload.steps, SCAN_STEPS)
    changed = {"tokens_per_device": tokens_per_device, "steps": steps}
    return session.setting(
        plan.cluster, plan.parallel, session.spec.workload.model_copy(update=changed), bits=plan.bits
    )


def _scan(
    session: Session,
    plan: Plan,
    placement: Placement,
    largest: int | None,
    say: Callable[[str, float], None] | None = None,
) -> Iterator[Bound]:
    last = largest or LARGEST_BATCH[session.spec.workload.phase]
    least = max(plan.schedule.n_parts, session.spec.workload.prompt_tokens + 1)
    sizes = [size for size in (2**power for power in range(16)) if least <= size < last] + [last]
    for number, size in enumerate(sizes):
        if say is not None:
            say(f"trying {size} tokens per device", 0.3 + 0.7 * number / len(sizes))
        yield batch_bound(session, plan, placement, size)


def _grid(session: Session, plan: Plan, placement: Placement) -> Iterator[Cell]:
    """Bounds over batch and context length."""
    least = max(plan.schedule.n_parts, session.spec.workload.prompt_tokens + 1)
    for size in (size for size in BATCHES if size >= least):
        setting = batch_setting(session, plan, size)
        yield from cells(setting, placement, plan, _at(rows_of(session, setting, placement, plan), size))


def _at(rows: Rows, tokens_per_device: int) -> Callable[[Setting], Bound]:
    return lambda setting: Bound(tokens_per_device=tokens_per_device, rows=rows(setting))


def _largest_batch(workload: WorkloadSpec, memory: DeviceMemory) -> int | None:
    """Tokens per device whose requests fit; None where more fit than are tried, or requests are given."""
    tokens_per_request = workload.tokens_per_device / memory.requests if memory.requests else 0.0
    room = memory.usable_bytes - float((memory.used_bytes - memory.kv_bytes).max())
    if not memory.kv_bytes or not tokens_per_request:
        return None
    requests = int(room // (memory.kv_bytes / memory.requests))
    largest = int(requests * tokens_per_request)
    return largest if largest <= LARGEST_BATCH[workload.phase] else None


def _memory_price(session: Session, plan: Plan, placement: Placement, memory: DeviceMemory, last: Bound) -> float:
    """Tokens/s of one more GiB on every device: the requests that it holds, at the slope of the bound there."""
    per_request = memory.kv_bytes / memory.requests
    more = max(round(last.tokens_per_device * 0.1), 1)
    grown = batch_bound(session, plan, placement, last.tokens_per_device + more)
    slope = (grown.tokens_per_s - last.tokens_per_s) / more
    tokens_per_request = session.spec.workload.tokens_per_device / memory.requests
    return slope * tokens_per_request * 2**30 / per_request
