"""The reduction plane as loops over single tokens, written down from its documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.traffic import PortTokens
from scenarios.schedule_specs import DedupName
from traces.routing import RoutingTrace

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What `reduce_trace` must give with all pairs kept."""

    slot_tokens: Counts
    summed_tokens: Counts
    pairs: Counts
    node_pairs_total: Counts
    ports: PortTokens


def expected_reduction(
    trace: RoutingTrace,
    tokens: Counts,
    placement: Placement,
    layout: ExpertLayout,
    *,
    chunks: int,
    dedup: DedupName,
) -> Expected:
    """Follow every token to its slots (replicas take turns), ranks, devices and ports."""
    shape = (trace.n_layers, len(tokens) * chunks)
    result = Expected(
        slot_tokens=np.zeros((*shape, placement.n_slots), np.int64),
        summed_tokens=np.zeros((*shape, layout.n_ranks), np.int64),
        pairs=np.zeros((*shape, layout.n_devices, layout.n_devices), np.int64),
        node_pairs_total=np.zeros((trace.n_layers, layout.n_devices, layout.n_nodes), np.int64),
        ports=PortTokens(**{name: np.zeros((*shape, layout.n_devices), np.int64) for name in PortTokens.__slots__}),
    )
    for layer in range(trace.n_layers):
        for (step, source, place), token in np.ndenumerate(tokens):
            cell = (layer, step * chunks + place * chunks // tokens.shape[2])
            turn = source * tokens.shape[2] + place
            slots = list(slots_of_token(trace, placement, layer, int(token), turn))
            for slot in slots:
                result.slot_tokens[(*cell, slot)] += 1
            ranks = [int(placement.rank_of_slot[layer, slot]) for slot in slots]
            visited = ranks if dedup == "none" else sorted(set(ranks))
            for rank in [] if dedup == "none" else visited:
                result.summed_tokens[(*cell, rank)] += 1
            devices = [rank * layout.tp + i for rank in visited for i in range(layout.tp)]
            for device in devices:
                result.pairs[(*cell, source, device)] += 1
            for node in {device // layout.devices_per_node for device in devices}:
                result.node_pairs_total[layer, source, node] += 1
            travel(result.ports, cell, source, devices, layout, forwarded=dedup == "node")
    return result


def slots_of_token(trace: RoutingTrace, placement: Placement, layer: int, token: int, turn: int) -> Iterator[int]:
    """Slots of the experts of a token: the replica whose turn it is."""
    for k in range(trace.top_k):
        expert = int(trace.ids[layer, k, token])
        if expert == trace.padding_id:
            continue
        copies = [slot for slot in range(placement.n_slots) if placement.expert_of_slot[layer, slot] == expert]
        yield copies[turn % len(copies)]


def travel(
    ports: PortTokens, cell: tuple[int, int], source: int, devices: list[int], layout: ExpertLayout, *, forwarded: bool
) -> None:
    """One token on its way to `devices`: straight, or once to each other node and on from there."""
    home, local = divmod(source, layout.devices_per_node)
    reached = set()
    for device in devices:
        node = device // layout.devices_per_node
        start = source
        if forwarded and node != home:
            start = node * layout.devices_per_node + local
            if node not in reached:
                reached.add(node)
                hop(ports, cell, source, start, layout)
        hop(ports, cell, start, device, layout)


def hop(ports: PortTokens, cell: tuple[int, int], start: int, end: int, layout: ExpertLayout) -> None:
    """One token from device to device, over the ports that join them."""
    if start == end:
        return
    inside = start // layout.devices_per_node == end // layout.devices_per_node
    send, receive = (ports.send_intra, ports.receive_intra) if inside else (ports.send_inter, ports.receive_inter)
    send[(*cell, start)] += 1
    receive[(*cell, end)] += 1
