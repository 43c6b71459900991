"""The compiled twin of `placement.counting`: one pass over the tokens, same integers (extra `speed`)."""

from __future__ import annotations

import numpy as np
from numba import njit

from placement.counting import Counts, LayerCounts, Rows, Targets


def count_tokens(slots: Rows, part: Counts, source: Counts, targets: Targets, counts: LayerCounts) -> None:
    """Add the tokens to `counts`; arguments as in `placement.counting.count_layer`."""
    _count(
        np.ascontiguousarray(slots.T), part, source, targets.rank_of_slot, targets.node_of_slot,
        targets.dedup, counts.slots, counts.pairs, counts.node_pairs,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _count(slots, part, source, rank_of_slot, node_of_slot, dedup, slot_counts, pairs, node_pairs):  # type: ignore[no-untyped-def]
    n_ranks, n_nodes = pairs.shape[2], node_pairs.shape[2]
    rank_seen = np.full(n_ranks, -1, np.int64)
    node_seen = np.full(n_nodes, -1, np.int64)
    n_slots = slot_counts.shape[1]
    for token in range(slots.shape[0]):
        p, s = part[token], source[token]
        for k in range(slots.shape[1]):
            slot = slots[token, k]
            if slot >= n_slots:
                continue
            slot_counts[p, slot] += 1
            rank, node = rank_of_slot[slot], node_of_slot[slot]
            if not dedup or rank_seen[rank] != token:
                rank_seen[rank] = token
                pairs[p, s, rank] += 1
            if node_seen[node] != token:
                node_seen[node] = token
                node_pairs[p, s, node] += 1
