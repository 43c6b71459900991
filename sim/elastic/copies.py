"""Bytes of a reconfiguration: what the devices of the next formation lack, and the nearest place that has it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.cards import LinkCard
from hwmodels.cluster import Cluster
from placement.copies import NOBODY, copies_of
from sim.elastic.formations import Formation

Source = int | None
"""A device, or None: host or disk of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
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
        same = self.before is not None and self.before.devices == self.after.devices
        return same and not any((*self.arrived.values(), *self.left.values()))


def change_between(before: Formation | None, after: Formation, dead: Collection[int] = ()) -> Difference:
    """What the devices of `after` lack, from devices of `before` that are not dead, else from host or disk."""
    had = {} if before is None else before.held
    experts: dict[tuple[Source, int], float] = defaultdict(float)
    lost: dict[int, NDArray[np.bool_]] = {}
    nothing = np.zeros_like(after.held[after.devices[0]])
    for shard in range(after.expert_tp):
        devices = [device for device in sorted({*had, *after.held}) if after.expert_shard(device) == shard]
        held = np.stack([nothing if d in dead else had.get(d, nothing) for d in devices], axis=1)
        wanted = np.stack([after.held.get(d, nothing) for d in devices], axis=1)
        copies = copies_of(held, wanted, np.array(devices) // after.node_devices)
        for layer, expert, source, target in np.stack(
            [copies.layer, copies.expert, copies.source, copies.target], axis=1
        ).tolist():
            sender = None if source == NOBODY else devices[source]
            experts[sender, devices[target]] += after.expert_bytes
            if sender is None:
                lost.setdefault(devices[target], nothing.copy())[layer, expert] = True
    there = {device: had.get(device, nothing) for device in after.devices}
    return Difference(
        before=before,
        after=after,
        experts=experts,
        others=_others(before, after, dead),
        arrived={device: int((after.held[device] & ~held).sum()) for device, held in there.items()},
        left={device: int((held & ~after.held[device]).sum()) for device, held in there.items()},
        lost=lost,
    )


def _others(before: Formation | None, after: Formation, dead: Collection[int]) -> dict[tuple[Source, int], float]:
    """All other weights of new devices, each from the nearest device with the same part; in turn where several are."""
    old = () if before is None else before.devices
    sent = dict.fromkeys((device for device in old if device not in dead), 0)
    copies: dict[tuple[Source, int], float] = {}
    for target in after.devices:
        if target in old:
            continue
        node, shard = target // after.node_devices, after.attention_shard(target)
        alike = [device for device in sent if before and before.attention_shard(device) == shard]
        source = min(alike, key=lambda d: (d // after.node_devices != node, sent[d], d), default=None)
        if source is not None:
            sent[source] += 1
        copies[source, target] = after.other_bytes
    return copies


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


def link_between(cluster: Cluster, node_devices: int, source: int, target: int) -> tuple[str, LinkCard]:
    """The link that bytes of two devices travel on, with its class: `intra` or `inter`."""
    if source // node_devices == target // node_devices or cluster.inter is None:
        return "intra", cluster.intra
    return "inter", cluster.inter
