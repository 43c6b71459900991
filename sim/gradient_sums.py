"""Sums of gradients over the devices that hold the same weights: who sums how many bytes, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.collectives import CollectiveOp, collective_s
from hwmodels.links import port_s
from placement.copies import held_by_rank
from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE, ModelCard
from sim.durations import Duration, ExchangeTime, Seconds
from sim.program import Work
from sim.setting import Setting
from sim.training import DENSE_SUM, EXPERT_SUM, HEAD_SUM
from sim.training_pricing import gradient_dtype

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that hold the same weights: `members` altogether, `per_node` of them in each node they lie in."""

    members: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Nodes that the group spans."""
        return self.members // self.per_node


@dataclass(frozen=True, slots=True)
class Share:
    """Parameters float64[device] that each device sums with its group."""

    parameters: Floats
    group: Group


Bucket = tuple[Share, ...]
"""Gradients that are there at the same time, summed one group after the other."""
Buckets = Mapping[tuple[str, int], Bucket]
"""(kind of work, layer) -> bucket; layer -1 of `DENSE_SUM` is the embedding."""


def buckets_of(setting: Setting, placement: Placement) -> dict[tuple[str, int], Bucket]:
    """Every bucket whose gradients are summed with another device; those that nobody shares are left out.

    Copies of an expert in several nodes count as if each lay in a node of its own.
    """
    model = setting.model
    moe_row = {layer: row for row, layer in enumerate(model.moe_layers)}
    whole, split = (_dense_group(setting, tp) for tp in (1, setting.attention_tp))
    everywhere = np.ones(setting.layout.n_devices)
    of_vocabulary = model.vocab_size * model.hidden_size / setting.attention_tp

    def shares(*parts: tuple[float, Group]) -> Bucket:
        return tuple(Share(count * everywhere, group) for count, group in parts if group.members > 1 and count)

    found: dict[tuple[str, int], Bucket] = {}
    for layer in range(model.n_layers):
        attention = model.attention.parameters(model.hidden_size) / setting.attention_tp
        found[DENSE_SUM, layer] = shares((attention, split), (_other_parameters(model, layer in moe_row), whole))
        if layer in moe_row:
            found[EXPERT_SUM, layer] = _expert_shares(setting, placement, moe_row[layer])
    if setting.is_first or (model.tied_embeddings and setting.is_last):
        found[DENSE_SUM, -1] = shares((of_vocabulary, split))
    if setting.is_last and not model.tied_embeddings:
        found[HEAD_SUM, -1] = shares((of_vocabulary, split))
    return {key: bucket for key, bucket in found.items() if bucket}


def _dense_group(setting: Setting, tp: int) -> Group:
    """Devices that hold the same part of weights which `tp` neighbours share, all replicas of the cluster together."""
    cluster, copies = setting.cluster, setting.training.replicas
    if setting.ranks is None:
        return Group(cluster.n_devices // tp * copies, cluster.devices_per_node // tp)
    nodes, per_node = setting.ranks.nodes_of("stage" if tp < setting.attention_tp else "dp")
    return Group(nodes * per_node * copies, per_node)


def _other_parameters(model: ModelCard, is_moe: bool) -> int:
    """Weights of a layer outside attention and routed experts, all on every device; norms left out."""
    if not is_moe:
        return model.dense_parameters
    return model.n_experts * model.hidden_size + model.shared_parameters + model.bottleneck_parameters


def _expert_shares(setting: Setting, placement: Placement, row: int) -> Bucket:
    """Experts of one layer by the number of ranks that hold them; two copies on one rank are summed there."""
    layout, copies = setting.layout, setting.training.replicas * setting.n_groups
    beside = 1 if setting.ranks is None else setting.ranks.nodes_of("edp")[1]
    held = held_by_rank(placement, row).T
    in_nodes = held.reshape(placement.n_experts, layout.n_nodes, -1).any(axis=-1).sum(axis=1)
    groups = [
        Group(n, n) if copies == 1 and nodes == 1 else Group(n * copies, beside if n == 1 else 1)
        for n, nodes in zip(held.sum(axis=1).tolist(), in_nodes.tolist(), strict=True)
    ]
    parameters = setting.model.expert_parameters / layout.tp
    return tuple(
        Share(np.repeat(held[[one == group for one in groups]].sum(axis=0) * parameters, layout.tp), group)
        for group in dict.fromkeys(groups)
        if group.members > 1
    )


def pieces_of(setting: Setting, buckets: Buckets, partition_bytes: float | None) -> dict[tuple[str, int], int]:
    """Pieces that each bucket is cut into, none larger than the partition on any device."""
    size = BYTES_PER_VALUE[gradient_dtype(setting)]
    if partition_bytes is None:
        return dict.fromkeys(buckets, 1)
    largest = {key: float(np.sum([share.parameters for share in one], axis=0).max()) for key, one in buckets.items()}
    return {key: max(1, math.ceil(size * count / partition_bytes)) for key, count in largest.items()}


def sum_s(setting: Setting, bucket: Bucket, frac: float = 1.0) -> Floats:
    """Time of a share of a bucket, float64[device] [s]: an all-reduce, a reduce-scatter where states are divided."""
    op: CollectiveOp = "reduce-scatter" if setting.training.zero else "all-reduce"
    size = frac * BYTES_PER_VALUE[gradient_dtype(setting)]
    return np.asarray(np.sum([ring_s(setting, op, share.parameters * size, share.group) for share in bucket], axis=0))


def gathered_s(setting: Setting, buckets: list[Bucket]) -> Floats:
    """Time of all-gathers of the weights of buckets, float64[device] [s]; nothing for none."""
    size = BYTES_PER_VALUE[setting.model.weight_dtype]
    times = [ring_s(setting, "all-gather", one.parameters * size, one.group) for bucket in buckets for one in bucket]
    return np.sum(times, axis=0) if times else np.zeros(setting.layout.n_devices)


def ring_s(setting: Setting, op: CollectiveOp, total_bytes: Floats, group: Group) -> Floats:
    """Time of a collective of buffers of `total_bytes`, float64[device] [s]; 0 where a device has none.

    Inside a node as measured on the link, where somebody did. Else rings, one through every port between nodes:
        T = passes (max((n - 1) / n S / BW_in, (n - 1) / n S / (m BW_out)) + (m - 1) a_in + (N - 1) a_out)
    with n members, m of them in each of N nodes, two passes of an all-reduce (Patarasuk and Yuan, J. Parallel Distrib.
    Comput. 69, 2009); bandwidth inside and between nodes work at the same time, ring steps follow each other.
    """
    cluster, n = setting.cluster, group.members
    if group.nodes == 1 and cluster.collectives is not None:
        times_s = collective_s(op, total_bytes, n, cluster.collectives, cluster.intra.bytes_per_s.value)
        return times_s * (total_bytes > 0)
    passes = 2 if op == "all-reduce" else 1
    sent = total_bytes * (n - 1) / n
    times_s = port_s(sent, cluster.intra) if group.per_node > 1 else np.zeros_like(sent)
    steps_s = (group.per_node - 1) * cluster.intra.ring_step_latency_s
    if group.nodes > 1:
        if cluster.inter is None:
            raise ScenarioError(
                f"training.replicas: {cluster.name} has no network between nodes; use another node card"
            )
        times_s = np.maximum(times_s, port_s(sent / group.per_node, cluster.inter))
        steps_s += (group.nodes - 1) * cluster.inter.ring_step_latency_s
    return passes * (times_s + steps_s) * (total_bytes > 0)


def sum_prices(setting: Setting, buckets: Buckets, pieces: Mapping[tuple[str, int], int]) -> dict[Work, Duration]:
    """Durations of all pieces over [step, device]; pieces of a bucket are alike."""
    return {
        Work(kind, layer, piece): on_ports(setting, sum_s(setting, bucket, 1 / pieces[kind, layer]))
        for (kind, layer), bucket in buckets.items()
        for piece in range(pieces[kind, layer])
    }


def on_ports(setting: Setting, times_s: Seconds) -> ExchangeTime:
    """An exchange that keeps both ports of each device busy for float64[device] in every step; all take part."""
    shape = (setting.batches.n_steps, setting.layout.n_devices)
    busy_s = np.broadcast_to(times_s, shape)
    return ExchangeTime(send_s=busy_s, receive_s=busy_s, group_size=setting.layout.n_devices)
