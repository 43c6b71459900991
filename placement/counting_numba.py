"""The compiled twin of `placement.counting`: one pass over the tokens, same integers (extra `speed`)."""

from __future__ import annotations

import numpy as np
from numba import njit

from placement.counting import Routes, TokenCounts, Tokens


def count_tokens(routes: Routes, tokens: Tokens, counts: TokenCounts) -> None:
    """Add the tokens to `counts`; arguments as in `placement.counting.count_layer`."""
    _count(
        np.asarray(routes.ids), routes.slot_of_id, routes.rank_of_slot, routes.node_of_slot, routes.dedup,
        tokens.index, tokens.part, tokens.source, tokens.turn, counts.slots, counts.pairs, counts.node_pairs,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _count(  # type: ignore[no-untyped-def]
    ids, slot_of_id, rank_of_slot, node_of_slot, dedup, index, part, source, turn, slot_counts, pairs, node_pairs
):
    n_slots, period = slot_counts.shape[1], slot_of_id.shape[1]
    with_nodes = node_pairs.shape[2] > 0
    rank_seen = np.full(pairs.shape[2], -1, np.int64)
    node_seen = np.full(max(node_pairs.shape[2], 1), -1, np.int64)
    for token in range(len(index)):
        p, s, i = part[token], source[token], index[token]
        place = turn[token] % period if period > 1 else 0
        for k in range(ids.shape[0]):
            slot = slot_of_id[ids[k, i], place]
            if slot >= n_slots:
                continue
            slot_counts[p, slot] += 1
            rank = rank_of_slot[slot]
            # No branches: whether a target was seen before is a coin toss that the processor cannot predict.
            pairs[p, s, rank] += not dedup or rank_seen[rank] != token
            rank_seen[rank] = token
            if with_nodes:
                node = node_of_slot[slot]
                node_pairs[p, s, node] += node_seen[node] != token
                node_seen[node] = token
