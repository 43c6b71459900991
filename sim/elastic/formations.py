"""Formations: an engine on a set of devices, with its placement, price tables and what each device holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwmodels.cluster import build_cluster, node_devices
from placement.copies import held_by
from placement.plan import Placement
from placement.resizing import Held, held_after, least_changed, relabelled_onto
from scenarios.cluster_specs import AttentionParallelSpec, ClusterSpec, ExpertParallelSpec, ParallelSpec
from scenarios.errors import ScenarioError
from scenarios.placement_specs import PlacementSpec
from scenarios.serving_specs import ServingSpec
from sim.memory import device_memory, kv_bytes_per_request
from sim.serving.engine import IterationPrices
from sim.serving.prices import StepOf
from sim.serving.simulate import Deployment, deployed, setting_of
from sim.session import Plan, Session, placement_digest
from sim.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Formation:
    """An engine on these devices; they are numbered over all nodes, `node_devices` of each.

    n_blocks      blocks of the KV cache of each of `n_ranks` attention ranks.
    expert_bytes  of one expert on one of its devices; other_bytes: all other weights of a device; kv_bytes: its cache.
    usable_bytes  memory of a device less the reserve.
    """

    devices: tuple[int, ...]
    node_devices: int
    n_ranks: int
    n_blocks: int
    prices: IterationPrices
    placement: Placement
    expert_tp: int
    expert_bytes: float
    other_bytes: float
    kv_bytes: float
    usable_bytes: float

    @property
    def attention_tp(self) -> int:
        """Devices of an attention rank."""
        return len(self.devices) // self.n_ranks

    @cached_property
    def held(self) -> Mapping[int, NDArray[np.bool_]]:
        """Device -> bool[layer, expert]: what it holds, or with tensor-parallel experts its share of which."""
        by_rank = held_by(self.placement)
        return {device: by_rank[:, :, i // self.expert_tp] for i, device in enumerate(self.devices)}

    def weight_bytes(self, device: int) -> float:
        """Weights of a device."""
        return float(self.held[device].sum()) * self.expert_bytes + self.other_bytes

    def expert_shard(self, device: int) -> int:
        """Which part of its experts the device holds."""
        return device % self.expert_tp

    def attention_shard(self, device: int) -> int:
        """Which part of attention the device holds."""
        return device % self.attention_tp

    def rank_devices(self) -> list[tuple[int, ...]]:
        """Devices of every attention rank."""
        tp = self.attention_tp
        return [self.devices[i : i + tp] for i in range(0, len(self.devices), tp)]


class Former(Protocol):
    """Makes formations; `unit` devices come and go together, of `n_nodes` nodes with `node_devices` each."""

    unit: int
    node_devices: int
    n_nodes: int

    def first(self) -> Formation:
        """The formation at the beginning."""

    def resized(
        self, before: Formation, devices: tuple[int, ...], spec: PlacementSpec | None = None, *, level: bool = True
    ) -> Formation:
        """The next formation on these devices; see `origins` for which of them count as those of `before`.

        spec   solves a placement, whose ranks are named so that most copies stay; else the one in force, least changed.
        level  least changed: ranks hold equal numbers of experts.
        Raises MemoryInfeasible where it does not fit.
        """


def origins(before: Formation, devices: Sequence[int]) -> list[int | None]:
    """The old expert rank that each new one is; where no device was there before, they are taken in order."""
    tp, old = before.expert_tp, before.placement.n_ranks
    heads = [devices[i] for i in range(0, len(devices), tp)]
    known = {device: i // tp for i, device in enumerate(before.devices)}
    if not known.keys() & set(devices):
        return [rank if rank < old else None for rank in range(len(heads))]
    return [known.get(head) for head in heads]


@dataclass(slots=True)
class PlanFormer:
    """Formations of a scenario's plan, each simulated once."""

    session: Session
    plan: Plan
    spec: ServingSpec
    step_of: StepOf
    n_nodes: int = field(init=False)
    node_devices: int = field(init=False)
    unit: int = field(init=False)
    _base: Setting = field(init=False)
    _made: dict[str, Deployment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cluster = self.plan.cluster
        own = build_cluster(cluster, self.session.base).devices_per_node
        most = node_devices(cluster, self.session.base)
        self.node_devices = max(own, most) if cluster.nodes == 1 else own
        scaling = self.spec.scaling
        self.n_nodes = max(cluster.nodes, (scaling and scaling.nodes) or 1)
        self._base = setting_of(self.session, self.plan, "decode", self.plan.schedule.n_parts, 1)
        self.unit = math.lcm(self._base.attention_tp, self._base.layout.tp)
        self._check()

    def _check(self) -> None:
        model, cluster = self._base.model, self.plan.cluster
        attention = self.plan.parallel.attention
        if cluster.experts is not None or (attention is not None and attention.cp * attention.pp > 1):
            raise ScenarioError(
                "serving.scaling, serving.failures: ranks come and go where attention and experts share the devices; "
                "leave cluster.experts, cp and pp out"
            )
        if len(set(model.expert_counts)) > 1 or model.iterations > 1 or self.plan.memory.offload is not None:
            raise ScenarioError(
                "serving.scaling, serving.failures: layers must have equal numbers of experts, all on devices and run "
                "once; leave memory.offload out, or choose another model"
            )
        if self.node_devices % self.unit:
            raise ScenarioError(f"groups of {self.unit} devices do not fill nodes of {self.node_devices}")

    def first(self) -> Formation:
        """The scenario's own formation."""
        own = build_cluster(self.plan.cluster, self.session.base)
        nodes = range(self.plan.cluster.nodes)
        devices = tuple(n * self.node_devices + i for n in nodes for i in range(own.devices_per_node))
        return self._formed(devices, self.session.plan_of(self._base, self.plan).placement)

    def resized(
        self, before: Formation, devices: tuple[int, ...], spec: PlacementSpec | None = None, *, level: bool = True
    ) -> Formation:
        """As `Former` says."""
        held = held_after(before.placement, origins(before, devices))
        return self._formed(devices, self._placement(before, devices, held, spec, level))

    def _placement(
        self, before: Formation, devices: tuple[int, ...], held: Held, spec: PlacementSpec | None, level: bool
    ) -> Placement:
        if spec is not None:
            plan = replace(self._sized(len(devices)), placement=spec, placed=None)
            setting = setting_of(self.session, plan, "decode", plan.schedule.n_parts, 1)
            return relabelled_onto(held, self.session.plan_of(setting, plan).placement)
        if len(devices) == len(before.devices) and held.any(axis=(0, 1)).all():
            return before.placement
        return least_changed(held, before.placement, level=level)

    def _sized(self, n_devices: int) -> Plan:
        """The plan on so many devices: degrees of tensor parallelism stay, those of data and experts follow."""
        setting = self._base
        return replace(
            self.plan,
            cluster=sized_cluster(self.plan.cluster, n_devices, self.node_devices),
            parallel=ParallelSpec(
                attention=AttentionParallelSpec(dp=n_devices // setting.attention_tp, tp=setting.attention_tp),
                experts=ExpertParallelSpec(ep=n_devices // setting.layout.tp, tp=setting.layout.tp),
            ),
        )

    def _formed(self, devices: tuple[int, ...], placement: Placement) -> Formation:
        key = f"{len(devices)} {placement_digest(placement)}"
        plan = replace(self._sized(len(devices)), placed=placement)
        if key not in self._made:
            self._made[key] = deployed(self.session, plan, self.spec, self.step_of)
        ready = self._made[key]
        setting = setting_of(self.session, plan, "decode", plan.schedule.n_parts, 1)
        memory = device_memory(setting, placement, plan.memory.model_copy(update={"requests_per_device": 0}))
        kv = kv_bytes_per_request(setting.model, 1, setting.attention_tp)
        return Formation(
            devices=devices,
            node_devices=self.node_devices,
            n_ranks=ready.n_ranks,
            n_blocks=ready.n_blocks,
            prices=ready.prices,
            placement=placement,
            expert_tp=setting.layout.tp,
            expert_bytes=setting.model.expert_bytes / setting.layout.tp,
            other_bytes=memory.other_weight_bytes,
            kv_bytes=ready.n_blocks * self.spec.block_tokens * kv,
            usable_bytes=memory.usable_bytes,
        )

    @property
    def deployments(self) -> list[Deployment]:
        """All that were made so far, the first one first."""
        return list(self._made.values())


def sized_cluster(cluster: ClusterSpec, n_devices: int, node_devices: int) -> ClusterSpec:
    """The cluster with so many devices: part of one node, or whole nodes.

    Raises ScenarioError where they are neither.
    """
    if n_devices > node_devices and n_devices % node_devices:
        low = n_devices // node_devices * node_devices
        raise ScenarioError(
            f"{n_devices} devices are more than a node and no whole nodes of {node_devices}; take {low} or "
            f"{low + node_devices}"
        )
    nodes = max(1, n_devices // node_devices)
    return cluster.model_copy(update={"nodes": nodes, "devices_per_node": n_devices // nodes})
