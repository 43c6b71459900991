"""Tokens by source and expert slot: what a schedule transforms that changes which tokens travel, or how many rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.counting import TokenCounts, count_layer
from placement.layout import ExpertLayout
from placement.plan import Placement
from placement.reduction import Reduction, Tables, check_steps, grouped, in_order, reduction_from, routes_of
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import AlgorithmName
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


def padded(capacity: NDArray[np.int64], n_steps: int, placement: Placement, chunks: int) -> Sources:
    """Rows int32[layer, part, source, slot] of buffers that every source fills for each expert, used or not.

    capacity  int64[source]; chunks are runs of the rows of a buffer (Tutel, arXiv 2206.03382, section 3.3).
    Raises ScenarioError where experts have replicas, since nobody says which of their buffers is filled.
    """
    if placement.redundant_slots:
        raise ScenarioError(
            f"workload.routing.pad: placement {placement.name} has {placement.redundant_slots} replica slots a layer, "
            "and buffers of a capacity belong to one copy of an expert; use a plan without replicas"
        )
    end = capacity * np.arange(1, chunks + 1)[:, None] // chunks
    rows = np.diff(end, axis=0, prepend=0)
    shape = (placement.n_layers, n_steps, *rows.shape, placement.n_slots)
    filled: Sources = np.broadcast_to(rows[..., None], shape).reshape(shape[0], -1, *shape[3:]).astype(np.int32)
    return filled


def reduction_of(
    sources: Sources,
    placement: Placement,
    layout: ExpertLayout,
    *,
    chunks: int,
    keep_pairs: bool = False,
    algorithm: AlgorithmName = "direct",
) -> Reduction:
    """The reduction of tokens that travel once for every expert, as `reduce_trace` gives it with dedup none."""
    counts = TokenCounts(
        slots=sources.sum(axis=2, dtype=np.int32),
        pairs=by_rank(sources, placement, layout),
        node_pairs=np.zeros((*sources.shape[:3], 0), np.int32),
    )
    group = grouped(counts, layout, ("none", algorithm), keep_pairs=keep_pairs)
    return reduction_from([group], chunks, keep_pairs=keep_pairs)


def by_rank(counts: NDArray[np.int32], placement: Placement, layout: ExpertLayout) -> NDArray[np.int32]:
    """Sums int32[layer, ..., rank] of counts int32[layer, ..., slot]."""
    sums = np.zeros((*counts.shape[:-1], layout.n_ranks), np.int32)
    for layer, ranks in enumerate(placement.rank_of_slot):
        first = np.searchsorted(ranks, np.arange(layout.n_ranks))
        held = np.bincount(ranks, minlength=layout.n_ranks) > 0
        sums[layer][..., held] = np.add.reduceat(counts[layer], first[held], axis=-1)
    return sums


def by_peers(sources: Sources, placement: Placement, layout: ExpertLayout, groups: int) -> Sources:
    """Tokens in chunks of peers, int32[layer, step x chunk, source, slot] from int32[layer, step, source, slot].

    Devices lie in `groups` groups of neighbours; in chunk j group i sends to group i + j (FasterMoE, section 4.2).
    Raises ScenarioError where the groups do not divide the devices.
    """
    if layout.n_ranks % groups:
        raise ScenarioError(f"schedule.chunks: {groups} groups of peers do not divide {layout.n_ranks} expert ranks")
    group = np.arange(layout.n_devices) * groups // layout.n_devices
    home = placement.rank_of_slot * groups // layout.n_ranks
    stride = (home[:, None, :] - group[:, None]) % groups
    chunk = np.arange(groups)[:, None, None]
    parts = np.where(stride[:, None, None] == chunk, sources[:, :, None], 0)
    split: Sources = parts.reshape(len(sources), -1, *sources.shape[2:])
    return split
