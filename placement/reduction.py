"""The reduction plane: trace x placement -> integer tokens per expert slot, pair of devices and port.

Everything that does not depend on time lives here, so that any number of schedules and devices can be priced from one
reading of the trace. Laid out by layer, because the trace is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from placement.counting import Counts, LayerCounts, Rows, Targets, count_layer
from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.token_split import even_table, least_loaded_slots
from placement.traffic import PortTokens, direct_ports, forwarded_ports
from scenarios.errors import PlacementError
from scenarios.specs import DedupName
from traces.routing import RoutingTrace
from traces.storage import release_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """Tokens by layer and part; a part is one chunk of one step, steps first.

    slot_tokens  int64[layer, part, slot]: routed tokens of every expert replica.
    ports        int64[layer, part, device] each: dispatch at the ports, after the deduplication asked for.
    pairs        int64[layer, part, source, destination], or None where it was not kept.
    pairs_total  int64[layer, source, destination]: the same over all parts, always there.
    node_pairs_total  int64[layer, source, node]: tokens of a source that have an expert on that node.
    """

    slot_tokens: Counts
    ports: PortTokens
    pairs: Counts | None
    pairs_total: Counts
    node_pairs_total: Counts
    n_chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """The tokens of all parts in order: index into the trace, part, source device, and turn within the part."""

    index: Counts
    part: Counts
    source: Counts
    turn: Counts


def reduce_trace(
    trace: RoutingTrace,
    tokens: NDArray[np.int64],
    placement: Placement,
    layout: ExpertLayout,
    *,
    chunks: int = 1,
    dedup: DedupName = "device",
    keep_pairs: bool = False,
) -> Reduction:
    """Reduction of the steps `tokens` int64[step, device, token] (indices into the trace).

    dedup: a token travels once per routed expert ("none"), once per destination device, or once per destination node,
    where it is forwarded. Raises PlacementError where placement, trace and layout do not belong together.
    """
    _check(trace, placement, layout, tokens)
    ordered = _order(tokens, chunks)
    slots_of_expert = placement.slots_of_expert()
    node_forwards = dedup == "node" and layout.n_nodes > 1
    layers: list[tuple[LayerCounts, Counts, PortTokens]] = []
    for layer in range(trace.n_layers):
        targets = _targets(placement, layout, layer, dedup=dedup != "none")
        slots = _slots(trace.ids[layer][:, ordered.index], ordered, slots_of_expert[layer], placement, layer)
        counts = count_layer(slots, ordered.part, ordered.source, targets, layout.n_devices)
        release_pages(trace.ids)
        pairs = np.repeat(counts.pairs, layout.tp, axis=-1)
        node_pairs = counts.node_pairs
        ports = forwarded_ports(pairs, node_pairs, layout) if node_forwards else direct_ports(pairs, layout)
        layers.append((counts, pairs if keep_pairs else pairs.sum(axis=0), ports))
    pairs_by_layer = np.stack([pairs for _, pairs, _ in layers])
    return Reduction(
        slot_tokens=np.stack([counts.slots for counts, _, _ in layers]),
        ports=_stack([ports for _, _, ports in layers]),
        pairs=pairs_by_layer if keep_pairs else None,
        pairs_total=pairs_by_layer.sum(axis=1) if keep_pairs else pairs_by_layer,
        node_pairs_total=np.stack([counts.node_pairs.sum(axis=0) for counts, _, _ in layers]),
        n_chunks=chunks,
    )


def _check(trace: RoutingTrace, placement: Placement, layout: ExpertLayout, tokens: NDArray[np.int64]) -> None:
    if (placement.n_layers, placement.n_experts) != (trace.n_layers, trace.n_experts):
        raise PlacementError(
            f"placement {placement.name} is for {placement.n_layers} layers of {placement.n_experts} experts, "
            f"the trace has {trace.n_layers} of {trace.n_experts}"
        )
    if placement.n_ranks != layout.n_ranks:
        raise PlacementError(f"placement {placement.name} has {placement.n_ranks} ranks, the layout {layout.n_ranks}")
    if tokens.ndim != 3 or tokens.shape[1] != layout.n_devices or 0 in tokens.shape:
        raise PlacementError(f"steps have shape {tokens.shape}, expected [step, {layout.n_devices} devices, token]")


def _order(tokens: NDArray[np.int64], chunks: int) -> _Tokens:
    n_tokens = tokens.shape[2]
    step, device, place = (axis.ravel() for axis in np.indices(tokens.shape))
    part = step * chunks + place * chunks // n_tokens
    order = np.argsort(part, kind="stable") if chunks > 1 else slice(None)
    turn = (device * n_tokens + place)[order]
    return _Tokens(index=tokens.ravel()[order], part=part[order], source=device[order], turn=turn)


def _targets(placement: Placement, layout: ExpertLayout, layer: int, *, dedup: bool) -> Targets:
    ranks = placement.rank_of_slot[layer]
    return Targets(
        rank_of_slot=np.append(ranks, layout.n_ranks).astype(np.uint16),
        node_of_slot=np.append(ranks // layout.ranks_per_node, layout.n_nodes).astype(np.uint16),
        n_slots=placement.n_slots,
        n_ranks=layout.n_ranks,
        n_nodes=layout.n_nodes,
        dedup=dedup,
    )


def _slots(
    ids: NDArray[np.uint8] | NDArray[np.uint16],
    tokens: _Tokens,
    slots_of_expert: NDArray[np.int32],
    placement: Placement,
    layer: int,
) -> Rows:
    """Physical slot of every routed token, uint16[k, token]."""
    if placement.split == "least-loaded" and slots_of_expert.shape[1] > 1:
        used = ids < placement.n_experts
        part = np.broadcast_to(tokens.part, ids.shape)[used]
        slots = np.full(ids.shape, placement.n_slots, np.uint16)
        ranks = placement.rank_of_slot[layer]
        slots[used] = least_loaded_slots(ids[used].astype(np.int64), part, slots_of_expert, ranks)
        return slots
    table = even_table(slots_of_expert, np.iinfo(ids.dtype).max + 1, placement.n_slots)
    period = table.shape[1]
    return np.take(table, ids if period == 1 else ids * np.int64(period) + tokens.turn % period)


def _stack(ports: Sequence[PortTokens]) -> PortTokens:
    return PortTokens(**{f.name: np.stack([getattr(layer, f.name) for layer in ports]) for f in fields(PortTokens)})
