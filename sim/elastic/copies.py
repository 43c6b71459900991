"""Bytes of a reconfiguration: what the devices of the next formation lack, and the nearest place that has it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwmodels.cards import LinkCard
from hwmodels.cluster import Cluster
from sim.elastic.formations import Formation

Source = int | None
"""A device, or None: host or disk of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From a formation, None where an engine starts afresh, to the next one.

    experts   (source, target) -> bytes of experts that the target lacks; others: the same of all other weights.
    arrived   device -> experts that it lacks; left: experts that it no longer needs.
    lost      device -> bool[layer, expert]: those that it lacks and no other device has.
    """

    before: Formation | None
    after: Formation
    experts: Mapping[tuple[Source, int], float]
    others: Mapping[tuple[Source, int], float]
    arrived: Mapping[int, int]
    left: Mapping[int, int]
    lost: Mapping[int, NDArray[np.bool_]]

    @property
    def incoming(self) -> dict[int, float]:
        """Bytes that each device gets."""
        bytes_of: dict[int, float] = dict.fromkeys(self.after.devices, 0.0)
        for copies in (self.experts, self.others):
            for (_, target), size in copies.items():
                bytes_of[target] += size
        return bytes_of

    @property
    def new_devices(self) -> list[int]:
        """Devices that were not there before."""
        known = set() if self.before is None else set(self.before.devices)
        return [device for device in self.after.devices if device not in known]

    @property
    def is_none(self) -> bool:
        """Whether nothing changes."""
        return self.before is not None and self.before.devices == self.after.devices and not self.experts


@dataclass(slots=True)
class _Senders:
    """Chooses the nearest source, and of equally near ones that which has sent least."""

    node_devices: int
    sent: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def nearest(self, holders: Iterable[int], target: int, size: float) -> Source:
        """The holder to copy `size` bytes from."""
        holders = list(holders)
        if not holders:
            return None
        node = target // self.node_devices
        source = min(holders, key=lambda one: (one // self.node_devices != node, self.sent[one], one))
        self.sent[source] += size
        return source


def change_between(before: Formation | None, after: Formation, dead: Collection[int] = ()) -> Change:
    """What the devices of `after` lack, from devices of `before` that are not dead, else from host or disk."""
    senders = _Senders(after.node_devices)
    experts: dict[tuple[Source, int], float] = defaultdict(float)
    others: dict[tuple[Source, int], float] = defaultdict(float)
    arrived: dict[int, int] = {}
    left: dict[int, int] = {}
    lost: dict[int, NDArray[np.bool_]] = {}
    had = {} if before is None else before.held
    alive = [device for device in had if device not in dead]
    holders = _holders(before, alive)
    for target in after.devices:
        wanted = after.held[target]
        there = had.get(target, np.zeros_like(wanted))
        for layer, expert in np.argwhere(wanted & ~there).tolist():
            shard = (after.expert_shard(target), layer, expert)
            source = senders.nearest(holders.get(shard, ()), target, after.expert_bytes)
            experts[source, target] += after.expert_bytes
            if source is None:
                lost.setdefault(target, np.zeros_like(wanted))[layer, expert] = True
        arrived[target], left[target] = int((wanted & ~there).sum()), int((there & ~wanted).sum())
        if target not in had:
            alike = [d for d in alive if before and before.attention_shard(d) == after.attention_shard(target)]
            others[senders.nearest(alike, target, after.other_bytes), target] += after.other_bytes
    return Change(before=before, after=after, experts=experts, others=others, arrived=arrived, left=left, lost=lost)


def _holders(formation: Formation | None, devices: Iterable[int]) -> dict[tuple[int, int, int], list[int]]:
    """Devices by (shard, layer, expert) that they hold."""
    holders: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    if formation is not None:
        for device in devices:
            for layer, expert in np.argwhere(formation.held[device]).tolist():
                holders[formation.expert_shard(device), layer, expert].append(device)
    return holders


def distinct_bytes(after: Formation, targets: Mapping[int, NDArray[np.bool_]], fresh: Collection[int]) -> float:
    """Bytes that a node reads from its disk so that these devices get these experts, and the fresh ones all else, once.

    Devices of a node read an expert or another weight together: the second one finds it in the host's memory.
    """
    experts: set[tuple[int, int, int]] = set()
    for device, lacked in targets.items():
        shard = after.expert_shard(device)
        experts |= {(shard, layer, expert) for layer, expert in np.argwhere(lacked).tolist()}
    shards = {after.attention_shard(device) for device in fresh}
    return len(experts) * after.expert_bytes + len(shards) * after.other_bytes


def link_between(cluster: Cluster, node_devices: int, source: int, target: int) -> LinkCard:
    """The link that bytes of two devices travel on."""
    if source // node_devices == target // node_devices or cluster.inter is None:
        return cluster.intra
    return cluster.inter
