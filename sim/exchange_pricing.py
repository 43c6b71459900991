"""Durations of dispatch and combine: tokens at the ports, or of each message, through the links of the cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodels.links import port_s
from placement.exchange_time import Machine, Side, exchange_latency_s, port_times_s
from placement.reduction import Reduction
from placement.traffic import PortTokens
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ExchangeSpec
from sim.durations import Duration, ExchangeTime, Seconds
from sim.kernel_pricing import by_chunk, machine_of, tokens_of_parts
from sim.setting import Setting
from sim.stage_pricing import STAGED


def exchange_prices(setting: Setting, reduction: Reduction, spec: ExchangeSpec) -> dict[str, list[list[Duration]]]:
    """Works of an exchange -> [MoE layer][chunk] -> ExchangeTime over [step, device], by kernel and algorithm.

    A combine takes the way of its dispatch backwards: partial results of a token are summed before they cross a link
    that the token crossed once. Raises ScenarioError where the law needs messages that the deduplication hides,
    HardwareError where the kernel was not measured on the cluster's links.
    """
    if spec.law != "port" and spec.dedup == "node" and setting.layout.n_nodes > 1:
        raise ScenarioError(
            f"schedule.exchange: law {spec.law} needs dedup none or device; node forwarding has law port"
        )
    if spec.law != "port" and reduction.pairs is None:
        raise ScenarioError(f"schedule.exchange: law {spec.law} needs every pair of devices; reduce with keep_pairs")
    if spec.algorithm in STAGED:
        return STAGED[spec.algorithm](setting, reduction, spec)
    pairs = None if spec.law == "port" else reduction.pairs
    back = None if pairs is None else pairs.swapaxes(-1, -2)
    machine = machine_of(setting, spec)
    held = tokens_of_parts(setting, reduction.n_chunks, reduction.slot_tokens.shape[1])

    def prices(side: Side, ports: PortTokens, messages: NDArray[np.integer] | None) -> list[list[Duration]]:
        send_s = port_times_s(machine, side, held, (ports.send_intra, ports.send_inter))
        receive_s = port_times_s(machine, side, held, (ports.receive_intra, ports.receive_inter))
        message_s = None if messages is None else _message_s(setting, messages * machine.copy_bytes(side))
        return _durations(machine, (send_s, receive_s, message_s), reduction.n_chunks)

    return {
        "dispatch": prices("dispatch", reduction.ports, pairs),
        "combine": prices("combine", reduction.back, back),
    }


def _durations(
    machine: Machine, times_s: tuple[Seconds, Seconds, Seconds | None], n_chunks: int
) -> list[list[Duration]]:
    """Send, receive and message times [layer, part, ...] as [layer][chunk] of exchanges."""
    send_s, receive_s = by_chunk(times_s[0], n_chunks), by_chunk(times_s[1], n_chunks)
    message_s = None if times_s[2] is None else by_chunk(times_s[2], n_chunks)
    fixed = machine.exchange.kernel == "alpha-beta"
    latency_s = exchange_latency_s(machine.cluster, forwards=machine.forwards) if fixed else 0.0
    return [
        [
            ExchangeTime(
                send_s=send_s[layer, chunk],
                receive_s=receive_s[layer, chunk],
                group_size=machine.cluster.n_devices,
                message_s=None if message_s is None else message_s[layer, chunk],
                latency_s=latency_s,
            )
            for chunk in range(n_chunks)
        ]
        for layer in range(len(send_s))
    ]


def _message_s(setting: Setting, message_bytes: NDArray[np.floating]) -> Seconds:
    """float64[layer, part, port, source, destination]: port 0 inside nodes, port 1 between them; none to oneself."""
    cluster = setting.cluster
    node = np.arange(cluster.n_devices) // cluster.devices_per_node
    same_node, other = node[:, None] == node[None, :], ~np.eye(cluster.n_devices, dtype=bool)
    ways = [(message_bytes * (same_node & other), cluster.intra)]
    if cluster.n_nodes > 1 and cluster.inter is not None:
        ways.append((message_bytes * ~same_node, cluster.inter))
    ports = [port_s(moved, link) + (moved > 0) * link.message_overhead_s for moved, link in ways]
    return np.stack(ports, axis=2)
