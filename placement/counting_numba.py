"""The compiled twin of `placement.counting`: the same integers, token by token (extra `speed`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from placement.counting import Routes, TokenCounts, Tokens


def count_tokens(routes: Routes, tokens: Tokens, counts: TokenCounts) -> None:
    """Add the tokens to `counts`; arguments as in `placement.counting.count_layer`."""
    ids, where = np.asarray(routes.ids), (tokens.index, tokens.part, tokens.source, tokens.turn)
    _count_ranks(ids, routes.slot_of_id, routes.rank_of_slot, routes.dedup, *where, counts.slots, counts.pairs)
    if counts.node_pairs.shape[2] > 0:
        _count_nodes(ids, routes.slot_of_id, routes.node_of_slot, *where, counts.node_pairs)


# No branches on whether a target was seen before: that is a coin toss which the processor cannot predict.


@njit(cache=True, nogil=True)
def _count_ranks(ids, slot_of_id, rank_of_slot, dedup, index, part, source, turn, slots, pairs):  # type: ignore[no-untyped-def]
    n_slots, period = slots.shape[1], slot_of_id.shape[1]
    seen = np.full(pairs.shape[2], -1, np.int64)
    for token in range(len(index)):
        p, s, i = part[token], source[token], index[token]
        place = turn[token] % period if period > 1 else 0
        for k in range(ids.shape[0]):
            slot = slot_of_id[ids[k, i], place]
            if slot < n_slots:
                rank = rank_of_slot[slot]
                slots[p, slot] += 1
                pairs[p, s, rank] += not dedup or seen[rank] != token
                seen[rank] = token


@njit(cache=True, nogil=True)
def _count_nodes(ids, slot_of_id, node_of_slot, index, part, source, turn, node_pairs):  # type: ignore[no-untyped-def]
    n_nodes, period = node_pairs.shape[2], slot_of_id.shape[1]
    seen = np.full(n_nodes + 1, -1, np.int64)
    for token in range(len(index)):
        p, s, i = part[token], source[token], index[token]
        place = turn[token] % period if period > 1 else 0
        for k in range(ids.shape[0]):
            node = node_of_slot[slot_of_id[ids[k, i], place]]
            if node < n_nodes:
                node_pairs[p, s, node] += seen[node] != token
                seen[node] = token
