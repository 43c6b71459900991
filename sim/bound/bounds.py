"""From a scenario to its bounds: at the scenario's batch, over all batches that fit, and under relaxed hardware."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hwmodels.cards import LinkCard
from hwmodels.cluster import Cluster
from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.workload_specs import WorkloadSpec
from sim.bound.resources import Resource, resources
from sim.memory import DeviceMemory, check_memory, device_memory
from sim.result import RunResult
from sim.run import simulate
from sim.session import Plan, Session
from sim.setting import Setting

LARGEST_BATCH = {"decode": 4096, "prefill": 32_768}  # tokens per device that are tried
SCAN_STEPS = 4  # steps of a batch that is only tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Rows of one batch: `tokens_per_s` is the smallest of them; no schedule of the plan exceeds it."""

    tokens_per_device: int
    rows: tuple[Resource, ...]

    @property
    def binding(self) -> Resource:
        """The row that allows least."""
        return min(self.rows, key=lambda row: row.tokens_per_s)

    @property
    def any_plan(self) -> Resource:
        """The row that allows least, of those that hold for any placement of the experts."""
        return min((row for row in self.rows if row.holds == "any plan"), key=lambda row: row.tokens_per_s)

    @property
    def tokens_per_s(self) -> float:
        """Throughput that nothing exceeds."""
        return self.binding.tokens_per_s

    def used_frac(self, row: Resource) -> float:
        """Share of a resource that is busy at the bound."""
        return self.tokens_per_s / row.tokens_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """One number of the hardware, and the bound with a tenth more of it on every device.

    now           the number, in `unit`, of one device.
    per_unit      tokens/s of one more unit on every device, from a step of 1 %.
    """

    name: str
    unit: str
    now: float
    per_unit: float
    tenth_more_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """All that `moesim bound` found out.

    batches    bounds of other batches, ascending; the largest is what the memory holds, where it limits.
    largest    tokens per device that the memory holds; None where more than was tried fit.
    memory_tokens_per_s_per_gib  what one more GiB a device adds to the bound of the largest batch; None as above.
    simulated  the scenario's own plan and schedule.
    """

    scenario: str
    setting: Setting
    at: Bound
    levers: tuple[Lever, ...]
    batches: tuple[Bound, ...]
    largest: int | None
    memory_tokens_per_s_per_gib: float | None
    simulated: RunResult


def bounds_of(session: Session, progress: Callable[[str, float], None] | None = None) -> Bounds:
    """Bounds of the session's scenario. Raises what the stages of a simulation raise."""
    say = progress or (lambda _what, _share: None)
    spec = session.spec
    plan = Plan.of(spec)
    if plan.memory.offload is not None or plan.memory.stream is not None:
        raise ScenarioError(
            "memory.offload, memory.stream: bounds are of experts on the devices, and do not know what hosts add; "
            "leave them out"
        )
    if plan.serving is not None:
        raise ScenarioError(
            "serving: bounds are of steps of workload.tokens_per_device, not of requests under load; leave serving out"
        )
    setting = session.setting(plan.cluster, plan.parallel, spec.workload)
    if setting.trains:
        raise ScenarioError(
            "workload.phase: bounds are known for decode and prefill; `run` and `compare` simulate train"
        )
    placement = session.plan_of(setting, plan).placement
    memory = device_memory(setting, placement, spec.memory)
    check_memory(memory, setting, placement)
    say("simulating the plan", 0.0)
    simulated = simulate(session, setting, plan)
    at = bound_of(session, setting, placement, plan)
    levers = tuple(_levers(session, setting, placement, plan, at.tokens_per_s))
    say("trying batches", 0.3)
    largest = _largest_batch(setting.workload, memory)
    batches = tuple(_scan(session, plan, placement, largest, say))
    extra = None if largest is None else _memory_price(session, plan, placement, memory, batches[-1])
    return Bounds(
        scenario=spec.name,
        setting=setting,
        at=at,
        levers=levers,
        batches=batches,
        largest=largest,
        memory_tokens_per_s_per_gib=extra,
        simulated=simulated,
    )


def bound_of(session: Session, setting: Setting, placement: Placement, plan: Plan) -> Bound:
    """Rows of a setting under a plan."""
    reduction = session.reduction(setting, placement, plan.schedule)
    rows = resources(setting, placement, reduction, plan.schedule.exchange)
    return Bound(tokens_per_device=setting.workload.tokens_per_device, rows=rows)


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
    return session.setting(plan.cluster, plan.parallel, session.spec.workload.model_copy(update=changed))


def _scan(
    session: Session,
    plan: Plan,
    placement: Placement,
    largest: int | None,
    say: Callable[[str, float], None] | None = None,
) -> Iterator[Bound]:
    last = largest or LARGEST_BATCH[session.spec.workload.phase]
    chunks = plan.schedule.n_parts
    sizes = [size for size in (2**power for power in range(16)) if chunks <= size < last] + [last]
    for number, size in enumerate(sizes):
        if say is not None:
            say(f"trying {size} tokens per device", 0.3 + 0.7 * number / len(sizes))
        yield batch_bound(session, plan, placement, size)


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


def _levers(session: Session, setting: Setting, placement: Placement, plan: Plan, base: float) -> Iterator[Lever]:
    reduction = session.reduction(setting, placement, plan.schedule)

    def relaxed(change: Callable[[Cluster, float], Cluster], factor: float) -> float:
        cluster = change(setting.cluster, factor)
        rows = resources(replace(setting, cluster=cluster), placement, reduction, plan.schedule.exchange)
        return min(row.tokens_per_s for row in rows)

    for name, unit, now, change in _numbers(setting):
        yield Lever(
            name=name,
            unit=unit,
            now=now,
            per_unit=(relaxed(change, 1.01) - base) / (0.01 * now),
            tenth_more_tokens_per_s=relaxed(change, 1.1) - base,
        )


def _numbers(setting: Setting) -> Iterator[tuple[str, str, float, Callable[[Cluster, float], Cluster]]]:
    """(name, unit, value of one device, change of the cluster by a factor)."""
    model, cluster = setting.model, setting.cluster
    main = model.expert_dtype or model.weight_dtype
    yield f"{main} peak", "TFLOP/s", cluster.device.peak_flop_per_s(main) / 1e12, _with_peak
    yield "memory bandwidth", "GB/s", cluster.device.memory_bytes_per_s / 1e9, _with_memory
    yield f"{cluster.intra.name} bandwidth", "GB/s", cluster.intra.bytes_per_s.value / 1e9, _with_intra
    if cluster.inter is not None and cluster.n_nodes > 1:
        yield f"{cluster.inter.name} bandwidth", "GB/s", cluster.inter.bytes_per_s.value / 1e9, _with_inter


def _with_peak(cluster: Cluster, factor: float) -> Cluster:
    card = cluster.device.card
    peaks = {
        dtype: peak.model_copy(update={"value": peak.value * factor}) for dtype, peak in card.peak_flop_per_s.items()
    }
    card = card.model_copy(update={"peak_flop_per_s": peaks})
    return replace(cluster, device=replace(cluster.device, card=card))


def _with_memory(cluster: Cluster, factor: float) -> Cluster:
    card = cluster.device.card
    rate = card.memory_bytes_per_s
    card = card.model_copy(update={"memory_bytes_per_s": rate.model_copy(update={"value": rate.value * factor})})
    return replace(cluster, device=replace(cluster.device, card=card))


def _with_intra(cluster: Cluster, factor: float) -> Cluster:
    return replace(cluster, intra=_faster(cluster.intra, factor))


def _with_inter(cluster: Cluster, factor: float) -> Cluster:
    return cluster if cluster.inter is None else replace(cluster, inter=_faster(cluster.inter, factor))


def _faster(link: LinkCard, factor: float) -> LinkCard:
    rate = link.bytes_per_s
    return link.model_copy(update={"bytes_per_s": rate.model_copy(update={"value": rate.value * factor})})
