"""Tokens by source and expert slot: what a schedule transforms that changes which tokens travel, or how many rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.counting import TokenCounts, count_layer
from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.reduction import Reduction, Tables, check_steps, in_order, routes_of
from placement.traffic import direct_ports
from traces.routing import RoutingTrace
from traces.storage import release_pages

Sources = NDArray[np.int32]
"""int32[layer, part, source device, slot]: routed tokens, each once for every expert that it visits."""


def source_tokens(
    trace: RoutingTrace, tokens: NDArray[np.int64], placement: Placement, layout: ExpertLayout, *, chunks: int = 1
) -> Sources:
    """Routed tokens int32[layer, part, source device, slot] of the steps `tokens` int64[step, device, token].

    Raises PlacementError where placement, trace and layout do not belong together.
    """
    check_steps(trace, placement, layout, tokens)
    ordered, n_slots = in_order(tokens, chunks), placement.n_slots
    tables = Tables.of(placement, layout, np.iinfo(trace.ids.dtype).max + 1)
    shape = (tokens.shape[0] * chunks, layout.n_devices)
    sources = np.zeros((trace.n_layers, *shape, n_slots), np.int32)
    slots = np.zeros((shape[0], n_slots), np.int32)
    for layer in range(trace.n_layers):
        routes, found = routes_of(trace.ids[layer], ordered, tables, layer, dedup=False)
        by_slot = replace(routes, rank_of_slot=np.arange(n_slots + 1, dtype=np.uint16))
        count_layer(
            by_slot, found, TokenCounts(slots=slots, pairs=sources[layer], node_pairs=np.zeros((*shape, 0), np.int32))
        )
        release_pages(trace.ids)
    return sources


def compressed(sources: Sources, rate: float) -> Sources:
    """Clusters int32[layer, part, source, slot] that stand for the tokens: a share `rate` of them, at least one."""
    clusters: Sources = np.ceil(sources * rate - 1e-9).astype(np.int32)  # a product may round above a whole number
    return clusters


def reduction_of(
    sources: Sources, placement: Placement, layout: ExpertLayout, *, chunks: int, keep_pairs: bool = False
) -> Reduction:
    """The reduction of tokens that travel once for every expert, as `reduce_trace` gives it with dedup none."""
    n_layers, n_parts = sources.shape[:2]
    by_rank = np.zeros((n_layers, n_parts, layout.n_devices, layout.n_ranks), np.int32)
    for layer, ranks in enumerate(placement.rank_of_slot):
        first = np.searchsorted(ranks, np.arange(layout.n_ranks))
        held = np.bincount(ranks, minlength=layout.n_ranks) > 0
        by_rank[layer][..., held] = np.add.reduceat(sources[layer], first[held], axis=-1)
    pairs = np.repeat(by_rank, layout.tp, axis=-1) if layout.tp > 1 else by_rank
    return Reduction(
        slot_tokens=sources.sum(axis=2, dtype=np.int32),
        summed_tokens=np.zeros((n_layers, n_parts, layout.n_ranks), np.int32),
        ports=direct_ports(pairs, layout),
        pairs=pairs if keep_pairs else None,
        pairs_total=pairs.sum(axis=1, dtype=np.int32),
        node_pairs_total=np.zeros((n_layers, layout.n_devices, 0), np.int32),
        n_chunks=chunks,
    )
