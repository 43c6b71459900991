"""What one more replica slot, one more node, or other links would bring: each simulated with a plan solved anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.errors import MoesimError
from scenarios.placement_specs import PlacementSpec
from sim.result import RunResult
from sim.run import simulate
from sim.session import Plan, Session
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """One change, and the mean over the judged steps with it; both gains are over the plan as it is, minus one.

    name              what is changed.
    plan              name of the plan, solved anew for the change.
    gain              in tokens/s of all devices; per_device_gain: in tokens/s per device.
    why_not           why it cannot be had; gains and times are 0 then.
    """

    name: str
    plan: str
    step_time_s: float
    gain: float
    per_device_gain: float
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    name: str
    cluster: ClusterSpec
    parallel: ParallelSpec
    placement: PlacementSpec


def levers(
    session: Session, setting: Setting, plan: Plan, base: RunResult, progress: Callable[[str], None]
) -> tuple[Lever, ...]:
    """Every change that this setting allows, simulated; `base` is the plan as it is. `progress` is told each name.

    A plan that was read from a file is followed by plans of EPLB.
    """
    redundant = session.plan_of(setting, plan).placement.redundant_slots
    found = []
    for change in _changes(setting, plan, redundant):
        progress(change.name)
        found.append(_pulled(session, setting, plan, base, change))
    return tuple(found)


def _pulled(session: Session, setting: Setting, plan: Plan, base: RunResult, change: _Change) -> Lever:
    changed = replace(plan, cluster=change.cluster, parallel=change.parallel, placement=change.placement)
    try:
        other = session.setting(change.cluster, change.parallel, setting.workload, bits=plan.bits)
        result = simulate(session, other, changed)
    except MoesimError as error:
        return Lever(
            name=change.name, plan=base.name, step_time_s=0.0, gain=0.0, per_device_gain=0.0, why_not=str(error)
        )
    metrics, before = result.metrics, base.metrics
    return Lever(
        name=change.name,
        plan=result.name,
        step_time_s=metrics["step_time_s"],
        gain=metrics["tokens_per_s"] / before["tokens_per_s"] - 1,
        per_device_gain=metrics["tokens_per_s_per_device"] / before["tokens_per_s_per_device"] - 1,
    )


def _changes(setting: Setting, plan: Plan, redundant: int) -> Iterator[_Change]:
    yield from _slot_changes(setting, plan, redundant)
    cluster, n_nodes = plan.cluster, setting.cluster.n_nodes
    yield _moved(setting, plan, redundant, f"one node more ({n_nodes + 1})", {"nodes": n_nodes + 1})
    if n_nodes > 1:
        n_devices = setting.cluster.n_devices
        single = {"nodes": 1, "devices_per_node": n_devices, "inter_bandwidth": None}
        yield _moved(setting, plan, redundant, f"all {n_devices} devices in one node", single)
    elif setting.cluster.inter is not None and setting.layout.ranks_per_node % 2 == 0:
        half = setting.cluster.devices_per_node // 2
        yield _moved(setting, plan, redundant, "the same devices in two nodes", {"nodes": 2, "devices_per_node": half})
    links = {"intra_bandwidth": ("inside nodes", setting.cluster.intra)}
    if n_nodes > 1 and setting.cluster.inter is not None:
        links["inter_bandwidth"] = ("between nodes", setting.cluster.inter)
    for field, (place, link) in links.items():
        faster = cluster.model_copy(update={field: 2 * link.bytes_per_s.value})
        yield _Change(
            name=f"links {place} twice as fast", cluster=faster, parallel=plan.parallel, placement=plan.placement
        )


def _slot_changes(setting: Setting, plan: Plan, redundant: int) -> Iterator[_Change]:
    """One slot a rank more, and one less where replicas are there; `auto` is held to this number."""
    n_ranks, n_experts, spec = setting.layout.n_ranks, setting.model.n_experts, plan.placement
    if spec.total_redundant is not None:
        yield from _shared_slot_changes(setting, plan, spec.total_redundant)
        return
    for step, name in ((1, "one replica slot a rank more"), (-1, "one replica slot a rank less")):
        slots = redundant + step * n_ranks
        if 0 <= slots <= n_experts * (n_ranks - 1):
            held = spec.model_copy(update={"spare": (slots // n_ranks,)})
            yield _Change(
                name=f"{name} ({slots})",
                cluster=plan.cluster,
                parallel=plan.parallel,
                placement=held if spec.solver == "auto" else _resolved(spec, slots),
            )


def _shared_slot_changes(setting: Setting, plan: Plan, total: int) -> Iterator[_Change]:
    """As many replicas more and less as one slot a rank in every layer, shared by the layers."""
    step = setting.layout.n_ranks * len(setting.model.moe_layers)
    for slots, name in ((total + step, f"{step} shared replica slots more"), (total - step, f"{step} less")):
        if slots >= 0:
            changed = plan.placement.model_copy(update={"total_redundant": slots})
            yield _Change(name=f"{name} ({slots})", cluster=plan.cluster, parallel=plan.parallel, placement=changed)


def _moved(setting: Setting, plan: Plan, redundant: int, name: str, update: dict[str, int | None]) -> _Change:
    """The plan on other nodes; degrees of parallelism grow with the devices, replicas until slots divide."""
    cluster = plan.cluster.model_copy(update=update)
    per_node = cluster.devices_per_node or setting.cluster.devices_per_node
    n_devices = cluster.nodes * per_node
    factor = n_devices / setting.cluster.n_devices
    n_ranks = n_devices // setting.layout.tp
    slots = redundant + -(setting.model.n_experts + redundant) % n_ranks
    parallel = plan.parallel
    if parallel.attention is not None:
        scaled = parallel.attention.model_copy(update={"dp": round(parallel.attention.dp * factor)})
        parallel = parallel.model_copy(update={"attention": scaled})
    if parallel.experts is not None:
        parallel = parallel.model_copy(
            update={"experts": parallel.experts.model_copy(update={"ep": round(parallel.experts.ep * factor)})}
        )
    same = n_ranks == setting.layout.n_ranks or plan.placement.solver == "auto"
    placement = plan.placement if same else _resolved(plan.placement, slots)
    return _Change(name=name, cluster=cluster, parallel=parallel, placement=placement)


def _resolved(spec: PlacementSpec, redundant: int) -> PlacementSpec:
    """The same solver with other replicas; what came from a file is solved by EPLB.

    Replicas that layers share are as many as before: there is no number of a layer to change.
    """
    if spec.total_redundant is not None:
        return spec
    if spec.solver == "file":
        return PlacementSpec(solver="eplb", redundant=redundant, split=spec.split)
    return spec.model_copy(update={"redundant": redundant})
