"""Failures on the timeline: devices die, the engine finds out, and goes on with those that are left."""

from __future__ import annotations

from scenarios.errors import MemoryInfeasible
from scenarios.scaling_specs import FailureSpec
from sim.elastic.copies import change_between
from sim.elastic.fleet import Evicted, Fleet, Replica, Steps
from sim.elastic.formations import Formation
from sim.elastic.methods import Reconfiguration, outcome, recovery
from sim.serving.history import Change
from sim.serving.loop import check_longest


def fail(fleet: Fleet, failure: FailureSpec) -> Steps:
    """Devices die. Their requests lose their caches; every expert that nobody else has is loaded by others."""
    with fleet.lock.request() as turn:
        yield turn
        dead = set(fleet.pool.hit(failure))
        fleet.pool.kill(dead)
        hit = [replica for replica in fleet.replicas if dead & set(replica.formation.devices)]
        if not hit:
            fleet.notes.append(f"Devices {sorted(dead)} failed at {fleet.env.now:,.1f} s, and served nobody.")
        for replica in hit:
            yield from _survived(fleet, replica, dead)


def _survived(fleet: Fleet, replica: Replica, dead: set[int]) -> Steps:
    env, engine, before = fleet.env, replica.engine, replica.formation
    record = Change(kind="failure", at_s=env.now, n_before=len(before.devices), n_after=0)
    fleet.changes.append(record)
    yield fleet.at_rest(engine)
    devices = fleet.pool.survivors(before.devices)
    ranks = zip(engine.ranks, before.rank_devices(), strict=True)
    gone = [rank for rank, of_rank in ranks if not set(of_rank) <= set(devices)]
    homeless = fleet.evict(gone, engine, record)
    yield env.timeout(fleet.spec.stages.detect)
    try:
        after, taken = _recovered(fleet, before, devices, dead)
        if taken.room is not None:
            fleet.shrink(engine, taken.room)
    except MemoryInfeasible as short:
        record.downtime_s = env.now - record.at_s
        _given_up(fleet, replica, homeless, record, short)
        return
    record.n_after, record.moved_bytes = len(devices), taken.moved_bytes
    record.peak_bytes, record.total_bytes = taken.peak_bytes, taken.total_bytes
    yield env.timeout(taken.ready_s)
    fleet.regroup(replica, after, homeless, record)
    record.ready_s, record.downtime_s = env.now, env.now - record.at_s
    record.takes_s = record.downtime_s
    fleet.resume(engine)


def _recovered(
    fleet: Fleet, before: Formation, devices: tuple[int, ...], dead: set[int]
) -> tuple[Formation, Reconfiguration]:
    """The formation of the survivors and what it takes. Raises MemoryInfeasible where they have no room."""
    if not devices:
        raise MemoryInfeasible("no device is left")
    after = fleet.former.resized(before, devices, level=False)
    check_longest(fleet.requests, fleet.spec, after.n_blocks)
    program = fleet.program(change_between(before, after, dead))
    recovery(program)
    return after, outcome(program)


def _given_up(fleet: Fleet, replica: Replica, homeless: list[Evicted], record: Change, short: MemoryInfeasible) -> None:
    """What is left of the replica cannot go on: others take its requests, or the service ends."""
    others = [other for other in fleet.open_replicas if other is not replica]
    if not others:
        fleet.end(short)
        return
    fleet.notes.append(f"A replica ended at {fleet.env.now:,.1f} s, after a failure: {short}.")
    homeless += fleet.evict(replica.engine.ranks, replica.engine, record)
    waiting = [(request, 0, 0) for request in replica.engine.inbox]
    replica.engine.inbox.clear()
    fleet.retire(replica)
    for i, (request, written, _) in enumerate((*homeless, *waiting)):
        ranks = others[i % len(others)].engine.ranks
        min(ranks, key=lambda one: one.n_tokens).come_back(request, written)
    for other in others:
        other.engine.between(lambda _: None)
