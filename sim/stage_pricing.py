"""Durations of exchanges that have stages, or gather everything: works -> [MoE layer][chunk] -> ExchangeTime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.cluster import Cluster
from hwmodels.collectives import collective_s
from hwmodels.launch import small_kernels_s
from hwmodels.links import all_gather_s, port_s, reduce_scatter_s
from placement.exchange_time import SIDES, port_times_s, slower_port_s
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ExchangeSpec
from sim.durations import Duration, ExchangeTime, Seconds
from sim.kernel_pricing import by_chunk, machine_of, token_bytes, tokens_of_parts
from sim.setting import Setting

CollectiveName = Literal["all-gather", "reduce-scatter"]
INSIDE_KINDS: tuple[str, ...] = ("regroup", "forward", "collect")
"""Works inside nodes, as the fields of `sim.program.Chunk`."""
StagePrices = dict[str, list[list[Duration]]]


def hierarchical_prices(setting: Setting, reduction: Reduction, spec: ExchangeSpec) -> StagePrices:
    """Both stages of both sides (Tutel, arXiv 2206.03382, section 3.4): a strided copy, then the stage's all-to-all.

    A copy reads and writes the rows of all choices of the device's tokens. Stages end with the last device of a node,
    or of the cluster. Raises ScenarioError where there is nothing to split into stages.
    """
    machine, cluster = machine_of(setting, spec), setting.cluster
    if cluster.inter is None or min(cluster.n_nodes, cluster.devices_per_node) == 1:
        raise ScenarioError(
            f"schedule.exchange: algorithm hierarchical needs several nodes of several devices, not "
            f"{cluster.n_nodes} of {cluster.devices_per_node}; use algorithm direct"
        )
    stages = zip((cluster.intra, cluster.inter), machine.messages, strict=True)
    fixed_s = [link.latency_s.value + messages * link.message_overhead_s for link, messages in stages]
    names = {"dispatch": ("regroup", "dispatch"), "combine": ("collect", "combine")}
    prices: StagePrices = {}
    for side in SIDES:
        ports, size = reduction.ports if side == "dispatch" else reduction.back, machine.copy_bytes(side)
        copy_s = _small_s(setting, 2 * size * setting.model.top_k * _held(setting, reduction))
        near, far = (ports.send_intra, ports.receive_intra), (ports.send_inter, ports.receive_inter)
        near_s = [fixed_s[0] + copy_s + port_s(tokens * size, cluster.intra) for tokens in near]
        far_s = [fixed_s[1] + copy_s + port_s(tokens * size, cluster.inter) for tokens in far]
        prices[names[side][0]] = _exchanges(near_s, cluster.devices_per_node, reduction.n_chunks)
        prices[names[side][1]] = _exchanges(far_s, cluster.n_devices, reduction.n_chunks)
    return prices


def sliced_prices(setting: Setting, reduction: Reduction, spec: ExchangeSpec) -> StagePrices:
    """A token goes to one device of the group that shares its expert, which gathers; the way back scatters sums.

    This is the expert-sharding parallelism of FSMoE (arXiv 2501.10714, section 3). The collectives take as long for all
    devices of a group as its tokens together. Raises ScenarioError where nobody shares an expert.
    """
    machine, cluster, tp = machine_of(setting, spec), setting.cluster, setting.layout.tp
    if tp == 1:
        raise ScenarioError(
            "schedule.exchange: algorithm sliced gathers tokens for experts that devices share, and "
            "parallel.experts.tp is 1; raise tp or use algorithm direct"
        )
    grouped = reduction.held.reshape(*reduction.held.shape[:-1], -1, tp).sum(axis=-1)
    held = np.repeat(grouped, tp, axis=-1)
    prices: StagePrices = {}
    for side in SIDES:
        ports, size = reduction.ports if side == "dispatch" else reduction.back, machine.copy_bytes(side)
        copies = (ports.send_intra, ports.send_inter), (ports.receive_intra, ports.receive_inter)
        times = [port_times_s(machine, side, _held(setting, reduction), pair) for pair in copies]
        prices[side] = _exchanges(times, cluster.n_devices, reduction.n_chunks)
        op: CollectiveName = "all-gather" if side == "dispatch" else "reduce-scatter"
        shared_s = inside_collective_s(cluster, op, held * size, tp)
        name = "forward" if side == "dispatch" else "collect"
        prices[name] = _exchanges([shared_s, shared_s], tp, reduction.n_chunks)
    return prices


def all_gather_prices(setting: Setting, reduction: Reduction, spec: ExchangeSpec) -> StagePrices:
    """Every rank gets all tokens of the group, and a reduce-scatter brings sums back (Megatron-Core's `allgather`).

    A token crosses to a node once; steps are those of a ring inside nodes and of one between them.
    """
    machine, cluster = machine_of(setting, spec), setting.cluster
    inside, between = machine.messages
    fixed_s = inside * cluster.intra.ring_step_latency_s
    if cluster.inter is not None:
        fixed_s += between * cluster.inter.ring_step_latency_s
    prices: StagePrices = {}
    for side in SIDES:
        ports, size = reduction.ports if side == "dispatch" else reduction.back, machine.copy_bytes(side)
        copies = (ports.send_intra, ports.send_inter), (ports.receive_intra, ports.receive_inter)
        times = [fixed_s + slower_port_s(cluster, (near * size, far * size)) for near, far in copies]
        prices[side] = _exchanges(times, cluster.n_devices, reduction.n_chunks)
    return prices


def gathered_rows_s(setting: Setting, reduction: Reduction) -> Seconds:
    """Time in which every rank permutes the rows of all gathered choices there and back, float64[1, part, 1] [s].

    As the measured times of such dispatchers grow with tokens x ranks (FlashMoE, arXiv 2506.04667, section 4); its own
    rows are in the time of the experts already.
    """
    others = setting.layout.n_ranks - 1
    rows = _held(setting, reduction) * (setting.model.top_k * others * setting.layout.tp)
    return _small_s(setting, 4 * token_bytes(setting, None) * rows)[None]


def inside_collective_s(cluster: Cluster, op: CollectiveName, total_bytes: ArrayLike, n_devices: int) -> Seconds:
    """Time of a collective of devices of one node: as measured on the link, or a ring where nobody measured [s].

    total_bytes  float[...]: what an all-gather makes, or a reduce-scatter begins with, on each device.
    """
    card, link = cluster.collectives, cluster.intra
    amount = np.asarray(total_bytes, np.float64)
    if card is not None:
        return collective_s(op, amount, n_devices, card, link.bytes_per_s.value)
    if op == "all-gather":
        return all_gather_s(amount / n_devices, n_devices, link)
    return reduce_scatter_s(amount, n_devices, link)


def _small_s(setting: Setting, moved_bytes: ArrayLike) -> Seconds:
    device = setting.cluster.device
    return small_kernels_s(moved_bytes, device.memory_bytes_per_s, device.kernels.launch())


def _held(setting: Setting, reduction: Reduction) -> NDArray[np.integer]:
    return tokens_of_parts(setting, reduction.n_chunks, reduction.slot_tokens.shape[1])


def _exchanges(times_s: list[Seconds], group_size: int, n_chunks: int) -> list[list[Duration]]:
    """Send and receive times [layer, part, device] as [layer][chunk] of exchanges."""
    send_s, receive_s = (by_chunk(times, n_chunks) for times in times_s)
    return [
        [
            ExchangeTime(send_s=send, receive_s=receive, group_size=group_size)
            for send, receive in zip(*chunks, strict=True)
        ]
        for chunks in zip(send_s, receive_s, strict=True)
    ]


STAGED: dict[str, Callable[[Setting, Reduction, ExchangeSpec], StagePrices]] = {
    "hierarchical": hierarchical_prices,
    "sliced": sliced_prices,
    "all-gather": all_gather_prices,
}
