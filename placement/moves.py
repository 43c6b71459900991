"""Experts that move instead of tokens: which devices hold a copy for a layer and step, and what is left to travel.

Shadow (FasterMoE, PPoPP 2022): the weights of the hottest experts go to all devices, and their tokens stay where they
are; experts are taken in order of load while the layer gets shorter by the prices of the same machine. Pull (Janus,
SIGCOMM 2023): all tokens stay, and each device fetches the experts that they need, once for each node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.links import port_s
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from placement.exchange_time import SIDES, Machine, Seconds, exchange_latency_s, slower_port_s
from placement.layout import ExpertLayout
from placement.moe_time import both_ports_s, expert_times_s, together
from placement.plan import Placement
from placement.sources import Sources, by_rank, reduction_of
from placement.traffic import PortTokens, forwarded_ports

Fetched = NDArray[np.bool_]
"""bool[layer, step, device, slot]: the device holds a copy of the slot's expert for that layer and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Copies of experts on their way. send_s, receive_s float64[layer, step, device]; the sent copies inside nodes and
    between them int64[layer, step]."""

    send_s: Seconds
    receive_s: Seconds
    inside: NDArray[np.int64]
    between: NDArray[np.int64]


def fetch_of(machine: Machine, placement: Placement, fetched: Fetched, *, broadcast: bool) -> Fetch:
    """Time and copies of fetching; steps in which nothing is fetched take no time."""
    if broadcast:
        return _broadcast(machine, fetched.any(axis=2).sum(axis=-1))
    ports = pulled_ports(placement, machine.layout, fetched)
    cluster, size = machine.cluster, machine.model.expert_bytes
    latency_s = (
        exchange_latency_s(cluster, forwards=cluster.n_nodes > 1) * np.asarray(fetched.any(axis=(2, 3)))[..., None]
    )

    sent = ports.send_intra * size, ports.send_inter * size
    received = ports.receive_intra * size, ports.receive_inter * size
    return Fetch(
        send_s=latency_s + slower_port_s(cluster, sent),
        receive_s=latency_s + slower_port_s(cluster, received),
        inside=ports.send_intra.sum(axis=-1),
        between=ports.send_inter.sum(axis=-1),
    )


def _broadcast(machine: Machine, n_experts: NDArray[np.integer]) -> Fetch:
    """Pipelined rings over all devices, one expert after the other: (n - 1) ring steps, then bytes / W each.

    W is the smaller of a device's link inside nodes and of all ports of a node together, over which the rings spread.
    """
    cluster, size = machine.cluster, machine.model.expert_bytes
    n, n_nodes = cluster.n_devices, cluster.n_nodes
    if n == 1:
        return Fetch(
            send_s=np.zeros((*n_experts.shape, 1)),
            receive_s=np.zeros((*n_experts.shape, 1)),
            inside=np.zeros(n_experts.shape, np.int64),
            between=np.zeros(n_experts.shape, np.int64),
        )
    each_s, step_s = float(port_s(size, cluster.intra)), cluster.intra.ring_step_latency_s
    if n_nodes > 1 and cluster.inter is not None:
        each_s = max(each_s, float(port_s(size, cluster.inter)) / cluster.devices_per_node)
        step_s = max(step_s, cluster.inter.ring_step_latency_s)
    time_s = (n_experts > 0) * ((n - 1) * step_s) + n_experts * each_s
    everywhere: Seconds = np.repeat(time_s[..., None], n, axis=-1)
    return Fetch(
        send_s=everywhere,
        receive_s=everywhere,
        inside=n_experts.astype(np.int64) * (n - n_nodes),
        between=n_experts.astype(np.int64) * (n_nodes - 1),
    )


def pulled_ports(placement: Placement, layout: ExpertLayout, fetched: Fetched) -> PortTokens:
    """Copies of experts at the ports: once to each node that needs one, to the device with the owner's local number."""
    n_layers, n_steps, _, n_slots = fetched.shape
    in_node = np.asarray(fetched.reshape(n_layers, n_steps, layout.n_nodes, -1, n_slots).any(axis=3), np.int32)
    pairs = by_rank(fetched.astype(np.int32), placement, layout).swapaxes(-1, -2)
    node_pairs = by_rank(in_node, placement, layout).swapaxes(-1, -2)
    return forwarded_ports(pairs, node_pairs, layout)


def local_times_s(machine: Machine, tokens: Sources, held: NDArray[np.integer]) -> Seconds:
    """Time of the experts that a device holds copies of, float64[layer, step, device] [s]; nothing held, nothing run.

    tokens int32[layer, step, device, slot]; held int[layer, step, device]: experts that the kernel is called with.
    """
    shape = expert_shape(machine.model, machine.layout.tp)
    time_s = grouped_gemm_moe_s(tokens, shape, machine.cluster.device, n_slots=held)
    return np.where(held > 0, time_s, 0.0)


def shadowed(machine: Machine, placement: Placement, sources: Sources, tokens_per_device: int) -> Fetched:
    """Experts that are broadcast, bool[layer, step, device, slot]: greedily, up to the first that does not help."""
    n_layers, n_steps, n_devices, n_slots = sources.shape
    chosen = np.zeros((n_layers, n_steps, n_slots), bool)
    order = np.argsort(-sources.sum(axis=2), axis=-1, kind="stable")
    best_s = _layer_s(machine, placement, sources, chosen, tokens_per_device)
    open_ = np.ones((n_layers, n_steps), bool)
    for place in range(n_slots):
        tried = chosen.copy()
        np.put_along_axis(tried, order[..., place : place + 1], True, axis=-1)
        time_s = _layer_s(machine, placement, sources, tried, tokens_per_device)
        open_ &= time_s < best_s
        if not open_.any():
            break
        chosen = np.where(open_[..., None], tried, chosen)
        best_s = np.where(open_, time_s, best_s)
    return copies_elsewhere(placement, chosen, n_devices)


def copies_elsewhere(placement: Placement, chosen: NDArray[np.bool_], n_devices: int) -> Fetched:
    """Copies bool[layer, step, device, slot] of chosen slots bool[layer, step, slot], on all devices but their own."""
    away = placement.rank_of_slot[:, None, None, :] != np.arange(n_devices)[:, None]
    fetched: Fetched = chosen[:, :, None, :] & away & placement.filled[:, None, None, :]
    return fetched


def _layer_s(
    machine: Machine, placement: Placement, sources: Sources, chosen: NDArray[np.bool_], tokens_per_device: int
) -> Seconds:
    """Time of the MoE layer, nothing overlapped, float64[layer, step]: fetch, dispatch, experts, combine."""
    fetched = copies_elsewhere(placement, chosen, sources.shape[2])
    fetch = fetch_of(machine, placement, fetched, broadcast=True)
    reduction = reduction_of(np.where(fetched, 0, sources), placement, machine.layout, chunks=1)
    local_s = local_times_s(machine, np.where(fetched, sources, 0), fetched.sum(axis=-1))
    held, ports = np.full((1, 1), tokens_per_device), reduction.ports
    ways = zip(SIDES, (ports, ports.reversed()), strict=True)
    there, back = (both_ports_s(machine, side, held, way) for side, way in ways)
    times = together(there, expert_times_s(machine, placement, reduction) + local_s, back)
    total_s: Seconds = times.total_s + fetch.send_s.max(axis=-1)
    return total_s


def needed(placement: Placement, sources: Sources, *, ahead: bool) -> Fetched:
    """Copies that devices pull: of the experts that their tokens need, or, asked for ahead of the gate, of all."""
    everything = np.ones((*sources.shape[:2], sources.shape[3]), bool)
    away = copies_elsewhere(placement, everything, sources.shape[2])
    return away if ahead else away & (sources > 0)


def cheaper_to_pull(machine: Machine, placement: Placement, sources: Sources, fetched: Fetched) -> NDArray[np.bool_]:
    """Layers whose experts are fewer bytes than their tokens, bool[layer]: between nodes, or inside where there is one.

    With uniform routing that is R = B S k / (4 n H E) > 1 (Janus), of experts with 8 H^2 weights.
    """
    tokens = reduction_of(sources, placement, machine.layout, chunks=1).ports
    weights = pulled_ports(placement, machine.layout, fetched)
    both_ways = machine.copy_bytes("dispatch") + machine.copy_bytes("combine")
    name = "send_inter" if machine.cluster.n_nodes > 1 else "send_intra"
    travelling = getattr(tokens, name).sum(axis=(1, 2)) * both_ways
    fewer: NDArray[np.bool_] = getattr(weights, name).sum(axis=(1, 2)) * machine.model.expert_bytes < travelling
    return fewer
