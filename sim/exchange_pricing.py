"""Durations of dispatch and combine: tokens at the ports, or of each message, through the links of the cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodels.cluster import Cluster
from hwmodels.links import port_s
from placement.reduction import Reduction
from placement.traffic import PortTokens
from scenarios.errors import ScenarioError
from scenarios.models import DType
from scenarios.specs import ExchangeSpec
from sim.durations import Duration, ExchangeTime, Seconds
from sim.kernel_pricing import by_chunk, kernel_prices, token_bytes
from sim.setting import Setting


def exchange_prices(setting: Setting, reduction: Reduction, spec: ExchangeSpec) -> dict[str, list[list[Duration]]]:
    """ "dispatch" and "combine" -> [MoE layer][chunk] -> ExchangeTime over [step, device].

    A combine takes the way of its dispatch backwards: partial results of a token are summed before they cross a link
    that the token crossed once. Raises ScenarioError where the law needs messages that the deduplication hides.
    """
    if spec.kernel != "alpha-beta":
        return kernel_prices(setting, reduction, spec)
    if spec.law != "port" and spec.dedup == "node" and setting.layout.n_nodes > 1:
        raise ScenarioError(
            f"schedule.exchange: law {spec.law} needs dedup none or device; node forwarding has law port"
        )
    if spec.law != "port" and reduction.pairs is None:
        raise ScenarioError(f"schedule.exchange: law {spec.law} needs every pair of devices; reduce with keep_pairs")
    pairs = None if spec.law == "port" else reduction.pairs
    back = None if pairs is None else pairs.swapaxes(-1, -2)
    return {
        "dispatch": _prices(setting, reduction, reduction.ports, pairs, spec.dispatch_dtype),
        "combine": _prices(setting, reduction, reduction.ports.reversed(), back, spec.combine_dtype),
    }


def _prices(
    setting: Setting, reduction: Reduction, ports: PortTokens, pairs: NDArray[np.integer] | None, dtype: DType | None
) -> list[list[Duration]]:
    cluster, size, n_chunks = setting.cluster, token_bytes(setting, dtype), reduction.n_chunks
    latency_s = exchange_latency_s(cluster, forwards=reduction.forwards)
    send_s = by_chunk(latency_s + _port_s(cluster, ports.send_intra, ports.send_inter, size), n_chunks)
    receive_s = by_chunk(latency_s + _port_s(cluster, ports.receive_intra, ports.receive_inter, size), n_chunks)
    message_s = None if pairs is None else by_chunk(_message_s(setting, pairs * size), n_chunks)
    return [
        [
            ExchangeTime(
                send_s=send_s[layer, chunk],
                receive_s=receive_s[layer, chunk],
                group_size=cluster.n_devices,
                message_s=None if message_s is None else message_s[layer, chunk],
                latency_s=latency_s,
            )
            for chunk in range(n_chunks)
        ]
        for layer in range(len(send_s))
    ]


def exchange_latency_s(cluster: Cluster, *, forwards: bool) -> float:
    """Fixed time of an exchange over all devices: of the slowest kind of link, or of both in turn where it forwards."""
    links = [cluster.intra] + ([cluster.inter] if cluster.inter is not None and cluster.n_nodes > 1 else [])
    latencies_s = [link.latency_s.value for link in links]
    return sum(latencies_s) if forwards else max(latencies_s)


def _port_s(cluster: Cluster, intra: NDArray[np.integer], inter: NDArray[np.integer], size: float) -> Seconds:
    """The slower of a device's two ports, which work at the same time."""
    inside_s = port_s(intra * size, cluster.intra)
    if cluster.n_nodes == 1 or cluster.inter is None:
        return inside_s
    return np.maximum(inside_s, port_s(inter * size, cluster.inter))


def _message_s(setting: Setting, message_bytes: NDArray[np.floating]) -> Seconds:
    """float64[layer, part, port, source, destination]: port 0 inside nodes, port 1 between them; none to oneself."""
    cluster = setting.cluster
    node = np.arange(cluster.n_devices) // cluster.devices_per_node
    same_node, other = node[:, None] == node[None, :], ~np.eye(cluster.n_devices, dtype=bool)
    ports = [port_s(message_bytes * (same_node & other), cluster.intra)]
    if cluster.n_nodes > 1 and cluster.inter is not None:
        ports.append(port_s(message_bytes * ~same_node, cluster.inter))
    return np.stack(ports, axis=2)
