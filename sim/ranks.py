"""Which devices work together: attention and experts divide the same devices in ways of their own (parallel folding).

As in Megatron-Core (Liu et al., "MoE Parallel Folding", arXiv 2504.14960) a device has one place in attention and one
among the experts. Only the pipeline stage is common to both, so that stages come first: attention (pp, dp, cp, tp),
experts (pp, edp, ep, tp), the last one fastest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwmodels.cluster import Cluster
from placement.layout import ExpertLayout
from scenarios.cluster_specs import AttentionParallelSpec, ExpertParallelSpec, ParallelSpec
from scenarios.errors import ScenarioError

GroupName = Literal["tp", "cp", "dp", "stage", "experts", "edp"]
GROUPS: dict[GroupName, str] = {
    "tp": "tensor-parallel attention",
    "cp": "context-parallel attention",
    "dp": "replicas of attention's weights",
    "stage": "a pipeline stage",
    "experts": "ep x tp of experts",
    "edp": "replicas of an expert's weights",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Degrees of attention and experts on the devices of a cluster; their products agree (see `ranks_of`)."""

    devices_per_node: int
    attention: AttentionParallelSpec
    experts: ExpertParallelSpec

    @property
    def n_stages(self) -> int:
        """Pipeline stages."""
        return self.attention.pp

    @property
    def stage_devices(self) -> int:
        """Devices of a stage."""
        return self.attention.dp * self.attention.cp * self.attention.tp

    @property
    def n_devices(self) -> int:
        """Devices of all stages."""
        return self.n_stages * self.stage_devices

    def groups(self, name: GroupName) -> NDArray[np.int64]:
        """Devices of every group of a kind, int64[group, member]; the groups of the first stage come first."""
        attention, experts = self.attention, self.experts
        places = np.arange(self.n_devices, dtype=np.int64).reshape(-1, attention.cp, attention.tp)
        if name == "tp":
            return places.reshape(-1, attention.tp)
        if name == "cp":
            return places.swapaxes(1, 2).reshape(-1, attention.cp)
        if name == "dp":
            alike = places.reshape(self.n_stages, attention.dp * attention.cp, attention.tp)
            return alike.swapaxes(1, 2).reshape(-1, attention.dp * attention.cp)
        if name == "stage":
            return places.reshape(self.n_stages, -1)
        shape = (self.n_stages, experts.edp, experts.ep * experts.tp)
        stages = places.reshape(shape)
        if not experts.folded:  # (stages and outer replicas, ep, cp, tp): one group for every part of a sequence
            stages = places.reshape(-1, experts.ep, attention.cp, experts.tp).swapaxes(1, 2).reshape(shape)
        sides = stages if name == "experts" else stages.swapaxes(1, 2)
        return sides.reshape(-1, sides.shape[-1])

    def nodes_of(self, name: GroupName) -> tuple[int, int]:
        """(nodes that each group of a kind spans, its devices on each of them).

        Raises ScenarioError where groups lie on nodes in different ways.
        """
        groups = self.groups(name)
        n_nodes = -(-self.n_devices // self.devices_per_node)
        cells = np.arange(len(groups))[:, None] * n_nodes + groups // self.devices_per_node
        counts = np.bincount(cells.ravel())
        fewest, most = int(counts[counts > 0].min()), int(counts.max())
        if fewest < most:
            raise ScenarioError(
                f"parallel: groups of {groups.shape[1]} devices ({GROUPS[name]}) lie unevenly on nodes of "
                f"{self.devices_per_node}: some have {fewest} devices on a node, others {most}; choose degrees that "
                "divide a node, or that nodes divide"
            )
        return groups.shape[1] // fewest, fewest


def ranks_of(cluster: Cluster, parallel: ParallelSpec) -> Ranks:
    """The layout of `parallel` on a cluster; what it leaves out is data parallel attention and spread experts.

    Raises ScenarioError where degrees do not multiply to the devices, the stages of both sides differ, or a group of
    tensor-parallel devices does not fit into a node.
    """
    given_attention, given_experts = parallel.attention, parallel.experts
    pp = (given_attention or given_experts or AttentionParallelSpec(dp=1)).pp
    rest = max(cluster.n_devices // pp, 1)
    attention = given_attention or AttentionParallelSpec(dp=rest, pp=pp)
    experts = given_experts or ExpertParallelSpec(ep=rest, pp=pp)
    _check_product(cluster, "attention", {"dp": attention.dp, "tp": attention.tp}, cp=attention.cp, pp=attention.pp)
    _check_product(cluster, "experts", {"ep": experts.ep, "tp": experts.tp}, edp=experts.edp, pp=experts.pp)
    if attention.pp != experts.pp:
        raise ScenarioError(
            f"parallel: attention has {attention.pp} pipeline stages and experts {experts.pp}; a device is in one "
            "stage, so give both the same pp"
        )
    if cluster.devices_per_node % attention.tp:
        raise ScenarioError(
            f"parallel.attention: tp {attention.tp} does not divide the {cluster.devices_per_node} devices of a node"
        )
    if not experts.folded:
        _check_unfolded(attention, experts)
    if (experts.ep * experts.tp) % attention.tp:
        raise ScenarioError(
            f"parallel: attention tp {attention.tp} does not divide the {experts.ep} x {experts.tp} devices of an "
            "expert group (ep x tp), which is what is simulated; raise ep or the experts' tp"
        )
    return Ranks(devices_per_node=cluster.devices_per_node, attention=attention, experts=experts)


def layout_of(machine: Cluster, pool: Cluster | None, parallel: ParallelSpec, ranks: Ranks) -> ExpertLayout:
    """Where experts lie: on the devices of their group, or of a pool of their own, which `parallel.experts` is then of.

    Raises ScenarioError where degrees do not multiply to the pool's devices, or a pool has stages or replicas.
    """
    if pool is None:
        size = machine.devices_per_node
        return ExpertLayout(n_devices=machine.n_devices, devices_per_node=size, tp=ranks.experts.tp)
    experts = parallel.experts or ExpertParallelSpec(ep=pool.n_devices)
    if experts.ep * experts.tp != pool.n_devices or max(experts.edp, experts.pp, ranks.n_stages) > 1:
        raise ScenarioError(
            f"parallel.experts: ep x tp = {experts.ep} x {experts.tp} = {experts.ep * experts.tp}, without stages and "
            f"replicas (pp, edp), but cluster.experts has {pool.n_devices} devices ({pool.n_nodes} x "
            f"{pool.devices_per_node})"
        )
    return ExpertLayout(
        n_devices=pool.n_devices, devices_per_node=pool.devices_per_node, tp=experts.tp, sources=machine.n_devices
    )


def _check_product(cluster: Cluster, name: str, usual: dict[str, int], **others: int) -> None:
    """Degrees of one side multiply to the devices; those of one are named only where everyone gives them."""
    degrees = usual | {kind: degree for kind, degree in others.items() if degree > 1}
    product = int(np.prod(list(degrees.values())))
    if product != cluster.n_devices:
        raise ScenarioError(
            f"parallel.{name}: {' x '.join(degrees)} = {' x '.join(map(str, degrees.values()))} = {product}, "
            f"but the cluster has {cluster.n_devices} devices ({cluster.n_nodes} x {cluster.devices_per_node}); "
            f"give degrees whose product it is, or change cluster.nodes"
        )


def _check_unfolded(attention: AttentionParallelSpec, experts: ExpertParallelSpec) -> None:
    if experts.tp != attention.tp or attention.dp % experts.ep:
        raise ScenarioError(
            f"parallel.experts: folded: false wants attention's tp ({attention.tp}, not {experts.tp}) and an ep that "
            f"divides its dp ({attention.dp}, not divisible by {experts.ep})"
        )


def group_cluster(cluster: Cluster, ranks: Ranks) -> Cluster:
    """The cluster as the devices of one expert group see it: the group alone, on as many nodes as it spans."""
    if ranks.experts.ep * ranks.experts.tp == cluster.n_devices:
        return cluster
    n_nodes, devices_per_node = ranks.nodes_of("experts")
    return replace(cluster, n_nodes=n_nodes, devices_per_node=devices_per_node)
