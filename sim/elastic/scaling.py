"""Scaling on the timeline: the engine of a replica changes in place, another one starts beside it, or replicas do."""

from __future__ import annotations

from collections.abc import Generator

import simpy

from scenarios.errors import MemoryInfeasible
from scenarios.placement_specs import PlacementSpec
from sim.elastic.copies import change_between
from sim.elastic.devices import TooFewDevices
from sim.elastic.fleet import Evicted, Fleet, Replica, Steps
from sim.elastic.formations import Formation
from sim.elastic.methods import Reconfiguration, reconfigured
from sim.serving.history import Change
from sim.serving.loop import check_longest


def scale(fleet: Fleet, n_devices: int | None, placement: PlacementSpec | None = None) -> Steps:
    """Another number of devices, or as many with another placement, by the method of the scenario.

    Raises MemoryInfeasible where it does not fit, TooFewDevices where too few are left.
    """
    with fleet.lock.request() as turn:
        yield turn
        n_devices, used = n_devices or fleet.n_devices, set(fleet.pool.used)
        method = fleet.scaling.method
        try:
            if method == "horizontal":
                yield from _replicate(fleet, n_devices)
            elif method in ("extravagant", "colocated"):
                yield from _beside(fleet, fleet.open_replicas[-1], n_devices, placement)
            else:
                yield from _in_place(fleet, fleet.open_replicas[-1], n_devices, placement)
        except (MemoryInfeasible, TooFewDevices):
            fleet.pool.used = used
            raise


def _in_place(fleet: Fleet, replica: Replica, n_devices: int, placement: PlacementSpec | None) -> Steps:
    """The same engine on more or fewer devices, or with another placement."""
    env, engine, before = fleet.env, replica.engine, replica.formation
    devices = fleet.pool.resized(before.devices, n_devices)
    after = fleet.former.resized(before, devices, placement)
    difference = change_between(before, after)
    if difference.is_none:
        return
    taken = reconfigured(fleet.program(difference), fleet.scaling)
    check_longest(fleet.requests, fleet.spec, after.n_blocks if taken.room is None else min(taken.room, after.n_blocks))
    record, held = _begun(fleet, taken, len(before.devices), n_devices), fleet.hold(devices)
    ready_s, stopped_s, homeless = env.now + taken.ready_s, env.now, list[Evicted]()
    gated = taken.stops or fleet.scaling.gate
    engine.open = not gated
    if taken.stops:
        yield fleet.at_rest(engine)
        homeless = fleet.evict(engine.ranks, engine, record)
    elif taken.room is not None:
        yield fleet.at_rest(engine)
        fleet.shrink(engine, taken.room)
        fleet.resume(engine, takes=not gated)
    yield env.timeout(max(ready_s - env.now, 0.0))
    yield fleet.at_rest(engine)
    if not taken.stops:
        stopped_s = env.now
        homeless = yield from _handed_over(fleet, replica, after, record)
    fleet.regroup(replica, after, homeless, record)
    record.ready_s, record.downtime_s, held.end_s = env.now, env.now - stopped_s, env.now
    fleet.resume(engine)


def _handed_over(
    fleet: Fleet, replica: Replica, after: Formation, record: Change
) -> Generator[simpy.Event, None, list[Evicted]]:
    """Requests of ranks that go; the time of moving their caches passes where they are moved, all at once."""
    engine, before, staying = replica.engine, replica.formation, set(after.devices)
    ranks = zip(engine.ranks, before.rank_devices(), strict=True)
    leaving = [rank for rank, devices in ranks if not set(devices) <= staying]
    if fleet.scaling.kv == "recompute":
        return fleet.evict(leaving, engine, record)
    evicted = [rank.evict(engine.n_iterations) for rank in leaving]
    token_bytes = before.kv_bytes / (before.n_blocks * fleet.spec.block_tokens)
    cached = [sum(tokens for _, _, tokens in requests) for requests in evicted]
    if sum(cached):
        # Every device that goes sends its share; those that stay, more or fewer, receive.
        n_ports = min(len(leaving), len(after.rank_devices()))
        link, size = fleet.cluster.intra, max(max(cached), sum(cached) / n_ports) * token_bytes
        yield fleet.env.timeout(link.latency_s.value + size / link.effective_bytes_per_s)
        total = sum(cached) * token_bytes * before.attention_tp
        record.moved_bytes = {**record.moved_bytes, "intra": record.moved_bytes.get("intra", 0.0) + total}
    return [one for requests in evicted for one in requests]


def _beside(fleet: Fleet, old: Replica, n_devices: int, placement: PlacementSpec | None) -> Steps:
    """A new engine beside the old one, which finishes what it has begun with when the new one is there."""
    before, pool = old.formation, fleet.pool
    shared = fleet.scaling.method == "colocated"
    devices = pool.resized(before.devices, n_devices) if shared else pool.fresh(n_devices)
    after = fleet.former.resized(before, devices, placement)
    taken = reconfigured(fleet.program(change_between(before, after)), fleet.scaling)
    yield from _booted(fleet, after, taken, (len(before.devices), n_devices))
    fleet.close(old)


def _replicate(fleet: Fleet, n_devices: int) -> Steps:
    """Further replicas like the first one, or fewer of them."""
    size = len(fleet.open_replicas[0].formation.devices)
    while fleet.n_devices < n_devices:
        after = fleet.former.resized(fleet.open_replicas[0].formation, fleet.pool.fresh(size))
        taken = reconfigured(fleet.program(change_between(None, after)), fleet.scaling)
        yield from _booted(fleet, after, taken, (fleet.n_devices, fleet.n_devices + size))
    while fleet.n_devices > n_devices and len(fleet.open_replicas) > 1:
        now, n_before = fleet.env.now, fleet.n_devices
        fleet.close(fleet.open_replicas[-1])
        fleet.changes.append(
            Change(kind="horizontal", at_s=now, ready_s=now, n_before=n_before, n_after=fleet.n_devices)
        )


def _booted(fleet: Fleet, after: Formation, taken: Reconfiguration, counts: tuple[int, int]) -> Steps:
    """A further engine, once it is ready; it holds its devices from now on."""
    record, held = _begun(fleet, taken, *counts), fleet.hold(after.devices)
    yield fleet.env.timeout(taken.ready_s)
    held.end_s = record.ready_s = fleet.env.now
    fleet.join(after)


def _begun(fleet: Fleet, taken: Reconfiguration, n_before: int, n_after: int) -> Change:
    record = Change(
        kind=fleet.scaling.method,
        at_s=fleet.env.now,
        n_before=n_before,
        n_after=n_after,
        takes_s=taken.ready_s,
        moved_bytes=taken.moved_bytes,
        peak_bytes=taken.peak_bytes,
        total_bytes=taken.total_bytes,
    )
    fleet.changes.append(record)
    return record
