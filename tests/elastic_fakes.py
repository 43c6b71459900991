"""Formations without a model behind them: toy placements, sizes in round numbers, and prices that are a formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hwmodels.cluster import build_cluster
from placement.plan import Placement
from placement.resizing import held_after, least_changed
from scenarios.cluster_specs import ClusterSpec
from scenarios.placement_specs import PlacementSpec
from scenarios.serving_specs import RequestsSpec, ServingSpec
from sim.elastic.formations import Formation, origins
from sim.elastic.serve import serve_changing
from sim.serving.loop import Served
from sim.serving.ranks import RankLoad
from traces.requests import RequestTrace, made_up

CLUSTER = build_cluster(ClusterSpec(node="h200-sxm-8"))
N_LAYERS = 2


class RoundPrices:
    """10 ms and what tokens and contexts of the fullest rank add: answers of 30 tokens take half a second."""

    def iteration_s(self, loads: Sequence[RankLoad]) -> float:
        return 1e-2 + max(1e-3 * r.decoding + 3e-6 * r.context_tokens + 1e-4 * r.prompt_tokens for r in loads)

    def stretch_s(self, loads: Sequence[RankLoad], n: int) -> Any:
        grown = ([r._replace(context_tokens=r.context_tokens + i * r.decoding) for r in loads] for i in range(n))
        return np.array([self.iteration_s(each) for each in grown])


def contiguous(n_ranks: int, n_experts: int = 8, redundant: int = 0) -> Placement:
    slots = np.tile(np.arange(n_experts + redundant) % n_experts, (N_LAYERS, 1))
    return Placement.from_slots(slots, n_ranks, n_experts=n_experts, name="toy")


class ToyFormer:
    """Experts of 1 GB, 2 GB of other weights, a KV cache of 1 GB a device; nodes of four devices."""

    unit, node_devices = 1, 4

    def __init__(self, placement: Placement, n_nodes: int = 2, n_blocks: int = 10_000, usable: float = 1e11) -> None:
        self.placement, self.n_nodes, self.n_blocks, self.usable = placement, n_nodes, n_blocks, usable

    def formed(self, devices: Sequence[int], placement: Placement) -> Formation:
        return Formation(
            devices=tuple(devices),
            node_devices=self.node_devices,
            n_ranks=len(devices),
            n_blocks=self.n_blocks,
            prices=RoundPrices(),
            placement=placement,
            expert_tp=1,
            expert_bytes=1e9,
            other_bytes=2e9,
            kv_bytes=1e9,
            usable_bytes=self.usable,
        )

    def first(self) -> Formation:
        return self.formed(range(self.placement.n_ranks), self.placement)

    def resized(
        self, before: Formation, devices: tuple[int, ...], spec: PlacementSpec | None = None, *, level: bool = True
    ) -> Formation:
        assert spec is None
        held = held_after(before.placement, origins(before, devices))
        return self.formed(devices, least_changed(held, before.placement, level=level))


def requests_with(n: int = 80, **fields: Any) -> RequestTrace:
    spec = {"requests_per_s": 30.0, "n": n, "input_tokens": 60, "output_tokens": 30} | fields
    return made_up(RequestsSpec.model_validate(spec), np.random.default_rng(7))


def spec_of(**fields: Any) -> ServingSpec:
    usual = {"requests": {"requests_per_s": 1.0}, "token_budget": 256, "max_requests": 16, "block_tokens": 4}
    quick = {"start": "0.3 s", "communicator": "0.2 s", "allocate": "0.1 s", "warm_up_per_layer": "50 ms"}
    return ServingSpec.model_validate(usual | {"stages": quick} | fields)


def served_by(former: ToyFormer, requests: RequestTrace, **fields: Any) -> Served:
    return serve_changing(requests, spec_of(**fields), former, CLUSTER, N_LAYERS)
