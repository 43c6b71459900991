"""Methods of reconfiguration as short programs, and what they take: time, bytes by link, memory of every device."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hwmodels.cluster import Cluster
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.scaling_specs import Part, ScalingSpec, StagesSpec
from sim.elastic.copies import Difference, Source, distinct_bytes, link_between
from sim.elastic.formations import Formation
from sim.elastic.graph import Span, add_task, executed, makespan_s, new_graph
from sim.memory import GIB

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconfiguration:
    """What a change takes.

    ready_s      until the new formation serves [s]; stops: whether nothing is served until then.
    moved_bytes  by class of link (`intra`, `inter`), or `host` or `disk`.
    peak_bytes   device -> most that it holds meanwhile; total_bytes: most that all of them hold at once.
    room         blocks of the KV cache of each rank that stays, while copies come; None: as many as before.
    """

    ready_s: float
    stops: bool
    moved_bytes: Mapping[str, float]
    peak_bytes: Mapping[int, float]
    total_bytes: float
    room: int | None = None
    tasks: Mapping[str, Span] = field(default_factory=dict)


@dataclass(slots=True)
class Program:
    """Tasks of one change. Every method returns the names of the tasks that it added."""

    change: Difference
    cluster: Cluster
    stages: StagesSpec
    n_layers: int
    graph: nx.DiGraph = field(default_factory=new_graph)
    moved: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str, duration_s: float, after: Iterable[str] = ()) -> list[str]:
        """A stage that takes no device from others."""
        return [add_task(self.graph, name, duration_s, after=after)]

    def peer_copies(self, after: Iterable[str] = ()) -> list[str]:
        """Weights that come from other devices; each device sends and receives one at a time on a link."""
        after, node = list(after), self.change.after.node_devices
        total: dict[tuple[int, int], float] = {}
        for copies in (self.change.experts, self.change.others):
            for (source, target), size in copies.items():
                if source is not None:
                    total[source, target] = total.get((source, target), 0.0) + size
        names = []
        for (source, target), size in total.items():
            where, link = link_between(self.cluster, node, source, target)
            self._count(where, size)
            ports = f"{where} from {source}", f"{where} to {target}"
            duration_s = link.latency_s.value + size / link.effective_bytes_per_s
            names.append(add_task(self.graph, f"copy {source} to {target}", duration_s, after=after, needs=ports))
        return names

    def loads(self, after: Iterable[str] = (), *, everything: bool = False) -> list[str]:
        """Weights from host or disk: those that no device has, or all. Disk and links to devices work side by side."""
        after, new, node = list(after), self.change.after, self.change.after.node_devices
        if everything:
            lacked, fresh = dict(new.held), set(new.devices)
            size_of = {device: new.weight_bytes(device) for device in new.devices}
        else:
            lacked, fresh = dict(self.change.lost), {target for source, target in self.change.others if source is None}
            size_of = _sum_from(None, self.change.experts, self.change.others)
        names = []
        for device, size in size_of.items():
            names += self._to_device(device, size, after)
        for at in sorted({device // node for device in size_of}) if self.stages.weights == "disk" else ():
            here = {device: wanted for device, wanted in lacked.items() if device // node == at}
            size = distinct_bytes(new, here, {device for device in fresh if device // node == at})
            self._count("disk", size)
            duration_s = size / self.stages.disk_bandwidth
            names.append(add_task(self.graph, f"disk {at}", duration_s, after=after, needs=[f"disk {at}"]))
        return names

    def remap(self, after: Iterable[str]) -> list[str]:
        """Pages of experts that came or went, on each device."""
        experts = {d: self.change.arrived[d] + self.change.left[d] for d in self.change.after.devices}
        after = list(after)
        return [
            add_task(self.graph, f"remap {device}", n * self.stages.remap, after=after)
            for device, n in experts.items()
            if n
        ]

    def caches(self, devices: Iterable[int], after: Iterable[str] = ()) -> list[str]:
        """Empty KV caches, written once."""
        duration_s = self.change.after.kv_bytes / self.cluster.device.card.memory_bytes_per_s.value
        after = list(after)
        return [add_task(self.graph, f"cache {device}", duration_s, after=after) for device in devices]

    def warm_up(self, after: Iterable[str]) -> list[str]:
        """The first run of the new formation."""
        return self.stage("warm-up", self.n_layers * self.stages.warm_up_per_layer, after)

    def _to_device(self, device: int, size: float, after: list[str]) -> list[str]:
        link = self.cluster.host_link
        if link is None and self.stages.weights == "host":
            raise ScenarioError(
                f"{self.cluster.name} has no host_link; load weights from disk (serving.stages.weights)"
            )
        if link is None:
            return []
        self._count("host", size)
        duration_s = link.latency_s.value + size / link.effective_bytes_per_s
        return [add_task(self.graph, f"load {device}", duration_s, after=after, needs=[f"host to {device}"])]

    def _count(self, where: str, size: float) -> None:
        self.moved[where] = self.moved.get(where, 0.0) + size


def elastic_moe(program: Program, without: Collection[Part]) -> None:
    """Weights and caches stay in place, what new devices lack comes from their peers, and an engine waits, started.

    Without a part: `pre-initialised` the engine starts now, `connection-reuse` connects anew, `ipc-allocation` needs
    new buffers, `zero-copy` loads everything anew once it is connected.
    """
    stages, ready = program.stages, list[str]()
    if "pre-initialised" in without:
        ready = program.stage("start", stages.start)
    if "connection-reuse" in without:
        ready = program.stage("communicator", stages.communicator, ready)
    if "zero-copy" in without:
        _loaded(program, ready)
        return
    buffers = program.stage("allocate", stages.allocate) if "ipc-allocation" in without else []
    copied = [*program.peer_copies(buffers), *program.loads(buffers)]
    weights = copied if "ipc-allocation" in without else [*copied, *program.remap(copied)]
    caches = program.caches(program.change.new_devices)
    program.warm_up([*ready, *buffers, *weights, *caches])


def from_scratch(program: Program) -> None:
    """An engine starts, connects, and loads all of its weights."""
    ready = program.stage("communicator", program.stages.communicator, program.stage("start", program.stages.start))
    _loaded(program, ready)


def _loaded(program: Program, ready: Collection[str]) -> None:
    """All weights and caches anew, once the engine is ready for them."""
    weights = program.loads(ready, everything=True)
    program.warm_up([*ready, *weights, *program.caches(program.change.after.devices, weights or ready)])


def recovery(program: Program) -> None:
    """Survivors go on: at once where they hold every expert, else when the lost ones are loaded."""
    program.remap([*program.peer_copies(), *program.loads()])
    program.stage("regroup", program.stages.regroup, list(program.graph))


def reconfigured(program: Program, spec: ScalingSpec) -> Reconfiguration:
    """The change by the method of the scenario. Raises MemoryInfeasible where a device would need more than it has."""
    if spec.method == "elastic-moe":
        elastic_moe(program, spec.without)
    else:
        from_scratch(program)
    stops = spec.method == "cold-restart" or "zero-copy" in spec.without
    beside = spec.method in ("colocated", "extravagant", "horizontal")
    anew = "ipc-allocation" in spec.without
    return outcome(program, stops=stops, beside=beside, anew=anew)


def outcome(program: Program, *, stops: bool = False, beside: bool = False, anew: bool = False) -> Reconfiguration:
    """What the program takes.

    beside  old and new engine are there at once; anew: experts that stay get new buffers, beside the old ones.
    """
    change, spans = program.change, executed(program.graph)
    room = None if stops or beside or change.before is None else _room(change.before, change, anew)
    phases = _phases(change, room, stops=stops, beside=beside, anew=anew)
    peaks = {d: max(phase.get(d, 0.0) for phase in phases) for phase in phases for d in phase}
    for device, held in peaks.items():
        usable = change.after.usable_bytes
        if held > usable * (1 + 1e-9):
            raise MemoryInfeasible(
                f"reconfiguration: device {device} would hold {held / GIB:.1f} GiB of {usable / GIB:.1f} usable; "
                "levers: a smaller KV cache (serving.kv_tokens), more devices, method elastic-moe"
            )
    return Reconfiguration(
        ready_s=makespan_s(spans),
        stops=stops,
        moved_bytes=program.moved,
        peak_bytes=peaks,
        total_bytes=max(sum(phase.values()) for phase in phases),
        room=room,
        tasks=spans,
    )


def _room(before: Formation, change: Difference, anew: bool) -> int | None:
    """Blocks of the KV cache that fit beside old weights and what comes, on the fullest device that stays."""
    block_bytes = before.kv_bytes / before.n_blocks
    stay = [device for device in before.devices if device in change.after.held]
    left = [before.usable_bytes - _weights_meanwhile(before, change, device, anew) for device in stay]
    blocks = int(min(left, default=before.kv_bytes) / block_bytes + 1e-9)
    return None if blocks >= before.n_blocks else max(blocks, 0)


def _weights_meanwhile(before: Formation, change: Difference, device: int, anew: bool) -> float:
    kept = 0.0
    if anew and device in change.after.held:
        kept = float((before.held[device] & change.after.held[device]).sum()) * before.expert_bytes
    return before.weight_bytes(device) + change.incoming.get(device, 0.0) + kept


def _phases(change: Difference, room: int | None, *, stops: bool, beside: bool, anew: bool) -> list[dict[int, float]]:
    """Bytes of every device before, during and after a change; where all stops, old and new are never together."""
    before, after = change.before, change.after
    then = {device: after.weight_bytes(device) + after.kv_bytes for device in after.devices}
    if before is None:
        return [then]
    held = {device: before.weight_bytes(device) + before.kv_bytes for device in before.devices}
    if stops:
        return [held, then]
    during = dict(then)
    kv_bytes = before.kv_bytes * (1.0 if room is None else room / before.n_blocks)
    for device in before.devices:
        during[device] = _weights_meanwhile(before, change, device, anew) + kv_bytes
        if beside:
            during[device] = held[device] + then.get(device, 0.0)
    return [held, during, then]


def _sum_from(source: Source, *copies: Mapping[tuple[Source, int], float]) -> dict[int, float]:
    total: dict[int, float] = {}
    for each in copies:
        for (one, target), size in each.items():
            if one == source:
                total[target] = total.get(target, 0.0) + size
    return total
