"""Counting the tokens of one layer: per slot, per (source, rank) and per (source, node), each token once per target."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 32768  # ids, ranks and keys of a block stay in the cache
Counts = NDArray[np.int64]
Rows = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Tables of one layer. A slot number of `n_slots` marks an unused place of a token's top-k.

    rank_of_slot, node_of_slot  uint16[slot + 1], the last entry being `n_ranks` and `n_nodes`.
    """

    rank_of_slot: Rows
    node_of_slot: Rows
    n_slots: int
    n_ranks: int
    n_nodes: int
    dedup: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCounts:
    """int64[part, slot], int64[part, source, rank] and int64[part, source, node]."""

    slots: Counts
    pairs: Counts
    node_pairs: Counts


def count_layer(slots: Rows, part: Counts, source: Counts, targets: Targets, n_sources: int) -> LayerCounts:
    """Counts of one layer from slots uint16[k, token], part int64[token] (ascending) and source int64[token].

    With `targets.dedup` a token counts once per rank, else once per routed expert; per node always once. The
    environment variable MOESIM_SPEED=numba selects a compiled twin with the same integers (extra `speed`).
    """
    n_parts = int(part[-1]) + 1
    counts = LayerCounts(
        slots=np.zeros((n_parts, targets.n_slots), np.int64),
        pairs=np.zeros((n_parts, n_sources, targets.n_ranks), np.int64),
        node_pairs=np.zeros((n_parts, n_sources, targets.n_nodes), np.int64),
    )
    if os.environ.get("MOESIM_SPEED") == "numba":
        from placement.counting_numba import count_tokens

        count_tokens(slots, part, source, targets, counts)
        return counts
    for begin in range(0, len(part), BLOCK_TOKENS):
        block = slice(begin, begin + BLOCK_TOKENS)
        _count_block(slots[:, block], part[block], source[block], targets, counts)
    return counts


def _count_block(slots: Rows, part: Counts, source: Counts, targets: Targets, counts: LayerCounts) -> None:
    first, last = int(part[0]), int(part[-1]) + 1
    local = part - first
    sender = local * counts.pairs.shape[1] + source
    _add(counts.slots[first:last], local, slots)
    ranks = targets.rank_of_slot[slots]
    _add(counts.pairs[first:last], sender, _first_visits(ranks, targets.n_ranks) if targets.dedup else ranks)
    nodes = targets.node_of_slot[slots] if targets.n_nodes > 1 else np.minimum(ranks[:1], 0)
    _add(counts.node_pairs[first:last], sender, _first_visits(nodes, targets.n_nodes))


def _add(counts: Counts, row: Counts, column: Rows | NDArray[np.uint8]) -> None:
    """Add one at [row[token], column[k, token]] for every k; a column beyond the last one is dropped."""
    width = counts.shape[-1] + 1
    flat = np.bincount((row * width + column).ravel(), minlength=counts.size // counts.shape[-1] * width)
    counts += flat.reshape(*counts.shape[:-1], width)[..., :-1]


def _first_visits(targets: Rows, unused: int) -> Rows | NDArray[np.uint8]:
    """Targets uint16[k, token] with every repetition within a token replaced by `unused`."""
    rows = targets.astype(np.uint8) if unused < 256 else targets
    visits = rows.copy()
    for k in range(1, len(rows)):
        seen = rows[k] == rows[0]
        for earlier in range(1, k):
            seen |= rows[k] == rows[earlier]
        visits[k][seen] = unused
    return visits
