"""Prices of experts on devices of their own (MegaScale-Infer, arXiv 2504.02263).

A simulated device stands for one of each pool: lanes of experts are those of the one that holds them. The devices of
the smaller pool stand for several, so that both pools have as many.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodels.cluster import Cluster
from hwmodels.links import port_s
from placement.moe_time import expert_times_s
from placement.plan import Placement
from placement.reduction import Reduction
from placement.traffic import PortTokens
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ExchangeSpec, ScheduleSpec
from sim.durations import Duration, ExchangeTime, Seconds, repeated
from sim.kernel_pricing import by_chunk, machine_of
from sim.policies import APART
from sim.setting import Setting
from sim.stage_pricing import inside_collective_s


def check_pools(setting: Setting, schedule: ScheduleSpec) -> None:
    """Raise ScenarioError where a schedule does not fit the pools of a setting, or its single one."""
    apart = schedule.overlap in APART
    if apart != (setting.pool is not None):
        remedy = "give cluster.experts, their machine" if apart else "give schedule.overlap ping-pong"
        raise ScenarioError(
            f"schedule.overlap: {schedule.overlap} has experts on {'devices of their own' if apart else 'all devices'},"
            f" and the cluster has {'one pool' if apart else 'two pools'}; {remedy}"
        )
    if not apart:
        return
    exchange = schedule.exchange
    if (exchange.law, exchange.kernel, exchange.algorithm) != ("port", "alpha-beta", "direct"):
        raise ScenarioError(
            f"schedule.exchange: tokens cross to the experts' pool directly, by law port and kernel alpha-beta, not by "
            f"{exchange.algorithm}, {exchange.law} and {exchange.kernel}; leave them out"
        )
    if exchange.dedup == "node":
        raise ScenarioError("schedule.exchange: dedup node forwards inside nodes; between pools use device or none")
    if schedule.transforms_loads or schedule.launch != "graph" or setting.workload.routing.pad:
        raise ScenarioError("schedule: move, payload, launch eager and padding are not for experts in a pool of theirs")
    if setting.cluster.inter is None or setting.expert_cluster.inter is None:
        raise ScenarioError("cluster.experts: pools are joined by the network, and a node card has none: inter_link")


def pool_prices(
    setting: Setting, placement: Placement, reduction: Reduction, exchange: ExchangeSpec
) -> dict[str, list[list[Duration]]]:
    """Experts and their exchanges: kind -> [MoE layer][chunk] -> duration over [step, simulated device].

    Experts of a rank gather a token that one of its devices has received, and scatter its results, inside their time.
    """
    machine, n_devices = machine_of(setting, exchange), setting.simulated_devices
    experts_s = expert_times_s(machine, placement, reduction) + _group_s(setting, reduction, exchange)
    every = repeated(np.repeat(experts_s, setting.layout.tp, axis=-1), n_devices)
    ports, chunks = reduction.ports, reduction.n_chunks
    return {
        "experts": [list(rows) for rows in by_chunk(every, chunks)],
        "dispatch": _exchanges(setting, ports, machine.copy_bytes("dispatch"), chunks),
        "combine": _exchanges(setting, ports, machine.copy_bytes("combine"), chunks, back=True),
    }


def _exchanges(
    setting: Setting, ports: PortTokens, token_bytes: float, n_chunks: int, *, back: bool = False
) -> list[list[Duration]]:
    """A message to each rank of experts, through the network ports of both pools: the larger of both latencies.

    back: the same from the experts.
    """
    n_attention, n_devices = setting.cluster.n_devices, setting.simulated_devices
    clusters, messages = (setting.cluster, setting.expert_cluster), (setting.layout.n_ranks, n_attention)
    moved = ports.send_inter[..., :n_attention] * token_bytes, ports.receive_inter[..., n_attention:] * token_bytes
    latency_s = max(_network_latency_s(cluster) for cluster in clusters)
    own_s, other_s = (
        by_chunk(repeated(latency_s + _network_s(*side), n_devices), n_chunks)
        for side in zip(clusters, moved, messages, strict=True)
    )
    send_s, receive_s = (other_s, own_s) if back else (own_s, other_s)
    return [
        [ExchangeTime(send_s=s, receive_s=r, group_size=n_devices) for s, r in zip(*rows, strict=True)]
        for rows in zip(send_s, receive_s, strict=True)
    ]


def _network_s(cluster: Cluster, moved_bytes: NDArray[np.floating], messages: int) -> Seconds:
    if cluster.inter is None:
        raise ScenarioError(f"{cluster.name} has no network port")
    return messages * cluster.inter.message_overhead_s + port_s(moved_bytes, cluster.inter)


def _network_latency_s(cluster: Cluster) -> float:
    return 0.0 if cluster.inter is None else cluster.inter.latency_s.value


def _group_s(setting: Setting, reduction: Reduction, exchange: ExchangeSpec) -> Seconds | float:
    """Gather and scatter of a rank's tokens inside its group, float64[layer, part, rank]."""
    tp, machine = setting.layout.tp, machine_of(setting, exchange)
    if tp == 1:
        return 0.0
    received = reduction.ports.receive_inter[..., setting.cluster.n_devices :]
    tokens = received.reshape(*received.shape[:-1], -1, tp).sum(axis=-1)
    gathered = tokens * machine.copy_bytes("dispatch"), tokens * machine.copy_bytes("combine")
    cluster = setting.expert_cluster
    there_s = inside_collective_s(cluster, "all-gather", gathered[0], tp)
    return there_s + inside_collective_s(cluster, "reduce-scatter", gathered[1], tp)
