"""Engines of a load whose devices change, and what reconfigurations and failures do to them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

import simpy

from hwmodels.cluster import Cluster
from scenarios.errors import MemoryInfeasible
from scenarios.scaling_specs import ScalingSpec
from scenarios.serving_specs import ServingSpec
from sim.elastic.copies import Difference
from sim.elastic.devices import Devices
from sim.elastic.formations import Formation, Former
from sim.elastic.methods import Program
from sim.serving.engine import Engine, Progress
from sim.serving.history import Change, Hold
from sim.serving.loop import check_longest
from sim.serving.ranks import Rank
from traces.requests import RequestTrace

Steps = Generator[simpy.Event, None, None]
Evicted = tuple[int, int, int]
"""A request without a rank: its number, tokens that it has written, tokens of it in a cache."""


@dataclass(slots=True)
class Replica:
    """An engine in its formation; it takes requests while it is `open`. `hold`: the devices that it holds now."""

    engine: Engine
    formation: Formation
    hold: Hold
    is_open: bool = True


@dataclass(slots=True)
class Fleet:
    """All engines of a load. `lock`: one change at a time, the next waits until the one under way is ready.

    ended  happens where the service ends before all requests are answered.
    """

    env: simpy.Environment
    requests: RequestTrace
    spec: ServingSpec
    former: Former
    cluster: Cluster
    n_layers: int
    progress: Progress
    ended: simpy.Event
    replicas: list[Replica] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pool: Devices = field(init=False)
    lock: simpy.Resource = field(init=False)
    n_submitted: int = 0
    most_ranks: int = 0
    most_blocks: int = 0

    def __post_init__(self) -> None:
        self.lock = simpy.Resource(self.env, 1)
        former, first = self.former, self.former.first()
        self.pool = Devices(unit=former.unit, per_node=former.node_devices, n_nodes=former.n_nodes)
        self.pool.take(first.devices)
        self.join(first)

    @property
    def scaling(self) -> ScalingSpec:
        """How devices come and go."""
        return self.spec.scaling or ScalingSpec()

    @property
    def open_replicas(self) -> list[Replica]:
        """Those that take requests."""
        return [replica for replica in self.replicas if replica.is_open]

    @property
    def n_devices(self) -> int:
        """Devices of those that take requests."""
        return sum(len(replica.formation.devices) for replica in self.open_replicas)

    @property
    def is_changing(self) -> bool:
        """Whether a change is under way."""
        return self.lock.count > 0

    def submit(self, request: int) -> None:
        """A request arrives: to the replicas in turn, or to the one with the fewest tokens a device."""
        ready = self.open_replicas
        if self.spec.router == "round-robin":
            chosen = ready[self.n_submitted % len(ready)]
        else:
            chosen = min(ready, key=lambda one: one.engine.n_tokens / len(one.formation.devices))
        self.n_submitted += 1
        chosen.engine.submit(request)

    def program(self, difference: Difference) -> Program:
        """An empty program of a change."""
        return Program(difference, self.cluster, self.spec.stages, self.n_layers)

    def join(self, formation: Formation) -> Replica:
        """A further engine, which serves from now on."""
        check_longest(self.requests, self.spec, formation.n_blocks)
        ranks = [self.new_rank(formation) for _ in range(formation.n_ranks)]
        engine = Engine(self.env, self.spec, ranks, formation.prices, self.progress)
        replica = Replica(engine, formation, Hold(devices=formation.devices, begin_s=self.env.now))
        self.replicas.append(replica)
        replica.hold = self.hold(formation.devices)
        self.engines.append(replica.engine)
        self.env.process(replica.engine.run())
        return replica

    def new_rank(self, formation: Formation) -> Rank:
        """A rank without requests."""
        self.ranks.append(Rank(self.spec, formation.n_blocks, *self.requests.columns()))
        return self.ranks[-1]

    def hold(self, devices: tuple[int, ...]) -> Hold:
        """Devices are held from now on."""
        formations = [replica.formation for replica in self.replicas]
        self.most_ranks = max(self.most_ranks, sum(one.n_ranks for one in formations))
        self.most_blocks = max(self.most_blocks, sum(one.n_ranks * one.n_blocks for one in formations))
        self.holds.append(Hold(devices=devices, begin_s=self.env.now))
        return self.holds[-1]

    def at_rest(self, engine: Engine) -> simpy.Event:
        """Happens when no iteration of the engine is under way; none begins, and requests wait, until `resume`."""
        resting = self.env.event()

        def rest(engine: Engine) -> None:
            engine.halted, engine.open = True, False
            resting.succeed()

        engine.between(rest)
        return resting

    def resume(self, engine: Engine, *, takes: bool = True) -> None:
        """The engine goes on, and takes requests."""
        engine.halted, engine.open = False, takes
        engine.between(lambda _: None)

    def evict(self, ranks: Iterable[Rank], engine: Engine, record: Change) -> list[Evicted]:
        """Requests of ranks that lose their caches."""
        gone = [one for rank in ranks for one in rank.evict(engine.n_iterations)]
        record.lost_tokens += sum(cached for _, _, cached in gone)
        return [(request, written, 0) for request, written, _ in gone]

    def shrink(self, engine: Engine, n_blocks: int) -> None:
        """A smaller KV cache makes room for weights. Raises MemoryInfeasible where it is too small for a request."""
        check_longest(self.requests, self.spec, n_blocks)
        for rank in engine.ranks:
            rank.resize(min(n_blocks, rank.n_blocks), engine.n_iterations)

    def regroup(self, replica: Replica, after: Formation, homeless: Iterable[Evicted], record: Change) -> None:
        """Ranks and prices of the next formation; requests without a rank go to those that have fewest tokens."""
        engine, before = replica.engine, replica.formation
        check_longest(self.requests, self.spec, after.n_blocks)
        old = dict(zip(before.rank_devices(), engine.ranks, strict=True))
        engine.ranks = [old.get(devices) or self.new_rank(after) for devices in after.rank_devices()]
        for rank in engine.ranks:
            rank.resize(after.n_blocks, engine.n_iterations)
        for request, written, cached in homeless:
            rank = min(engine.ranks, key=lambda one: one.n_tokens)
            decodes = written > 0 and cached == self.requests.input_tokens[request] + written - 1
            if not (decodes and rank.adopt(request, cached, engine.n_iterations)):
                record.lost_tokens += cached
                rank.come_back(request, written)
        engine.prices, replica.formation = after.prices, after
        self.pool.free(set(before.devices) - set(after.devices))
        replica.hold.end_s = self.env.now
        replica.hold = self.hold(after.devices)

    def close(self, replica: Replica) -> None:
        """The replica takes no more requests; those that it has not begun with go to the others."""
        replica.is_open = False
        waiting = list(replica.engine.inbox)
        replica.engine.inbox.clear()
        for request in waiting:
            self.submit(request)
        self.env.process(self._drained(replica))

    def _drained(self, replica: Replica, look_s: float = 1.0) -> Steps:
        """Devices are free, looked at every second, when the last request of a closed replica is answered."""
        while any(rank.busy for rank in replica.engine.ranks):
            yield self.env.timeout(look_s)
        self.retire(replica)

    def retire(self, replica: Replica) -> None:
        """The replica is gone, and its devices are free but for those that others stand on."""
        replica.is_open, replica.hold.end_s = False, self.env.now
        self.replicas.remove(replica)
        others = {device for other in self.replicas for device in other.formation.devices}
        self.pool.free(device for device in replica.formation.devices if device not in others)

    def end(self, short: MemoryInfeasible) -> None:
        """The service ends: what is left cannot go on."""
        self.notes.append(f"The service ended at {self.env.now:,.1f} s, after a failure: {short}.")
        if not self.ended.triggered:
            self.ended.succeed()
