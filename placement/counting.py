"""Counting the tokens of one layer: per slot, per (source, rank) and per (source, node), each token once per target."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 16384  # slots, targets and keys of a block stay in the cache
Counts = NDArray[np.int32]
Index = NDArray[np.int32]
Rows = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of all parts, parts ascending; int32[token] each.

    index into the trace (int64), part, source device, and turn: the token's number within its step.
    """

    index: NDArray[np.int64]
    part: Index
    source: Index
    turn: Index


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Routing of one layer and where it leads.

    ids           uint8 or uint16 [k, trace token].
    slot_of_id    slot for the n-th token of a step at [id, n mod period]; `n_slots` stands for an unused place.
    rank_of_slot, node_of_slot  uint16[slot + 1]; the last entry is that of an unused place: n_ranks and n_nodes.
    dedup         a token counts once per rank, else once per routed expert; per node it always counts once.
    """

    ids: Rows
    slot_of_id: NDArray[np.uint16]
    rank_of_slot: NDArray[np.uint16]
    node_of_slot: NDArray[np.uint16]
    dedup: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """int32[..., part, slot], int32[..., part, source, rank] and int32[..., part, source, node].

    With no entry for nodes they are not counted.
    """

    slots: Counts
    pairs: Counts
    node_pairs: Counts

    def of(self, layer: int) -> TokenCounts:
        """The counts of one layer of several, to be written to."""
        return TokenCounts(slots=self.slots[layer], pairs=self.pairs[layer], node_pairs=self.node_pairs[layer])


def count_layer(routes: Routes, tokens: Tokens, counts: TokenCounts) -> None:
    """Add one layer's tokens to `counts`.

    The environment variable MOESIM_SPEED=numba selects a compiled twin with the same integers (extra `speed`).
    """
    if os.environ.get("MOESIM_SPEED") == "numba":
        from placement.counting_numba import count_tokens

        count_tokens(routes, tokens, counts)
        return
    for begin in range(0, len(tokens.part), BLOCK_TOKENS):
        _count_block(routes, tokens, slice(begin, begin + BLOCK_TOKENS), counts)


def visited_ranks(routes: Routes, tokens: Tokens) -> Rows:
    """Ranks that the tokens visit, [k, token]; `routes.rank_of_slot[-1]` at unused places."""
    return _looked_up(routes.rank_of_slot, _slots(routes, tokens, slice(None)))


def _count_block(routes: Routes, tokens: Tokens, block: slice, counts: TokenCounts) -> None:
    part = tokens.part[block]
    parts = slice(int(part[0]), int(part[-1]) + 1)
    slots = _slots(routes, tokens, block)
    ranks = _looked_up(routes.rank_of_slot, slots)
    sender = (part - part[0]) * np.int64(counts.pairs.shape[1]) + tokens.source[block]
    _add(counts.slots[parts], part - part[0], slots)
    _add(counts.pairs[parts], sender, _first_visits(ranks, counts.pairs.shape[2]) if routes.dedup else ranks)
    if counts.node_pairs.shape[2] > 0:
        nodes = _looked_up(routes.node_of_slot, slots)
        _add(counts.node_pairs[parts], sender, _first_visits(nodes, counts.node_pairs.shape[2]))


def _slots(routes: Routes, tokens: Tokens, block: slice) -> Rows:
    """Slot of every routed token of the block, [k, token]."""
    ids = routes.ids[:, tokens.index[block]]
    period = routes.slot_of_id.shape[1]
    if period == 1:
        return _looked_up(routes.slot_of_id[:, 0], ids)
    slots: Rows = np.take(routes.slot_of_id, ids * np.int64(period) + tokens.turn[block] % period)
    return slots


def _looked_up(table: NDArray[np.uint16], rows: Rows) -> Rows:
    """table[rows], as bytes where all values are small: `bytes.translate` is several times faster than indexing."""
    if rows.dtype != np.uint8 or table.max() > 255:
        taken: Rows = np.take(table, rows)
        return taken
    bytewise = np.zeros(256, np.uint8)
    bytewise[: min(len(table), 256)] = table[:256]
    return np.frombuffer(rows.tobytes().translate(bytewise.tobytes()), np.uint8).reshape(rows.shape)


def _add(counts: Counts, row: NDArray[np.integer], column: Rows) -> None:
    """Add one at [row[token], column[k, token]] for every k; a column beyond the last one is dropped."""
    width = counts.shape[-1] + 1
    flat = np.bincount((row * np.int64(width) + column).ravel(), minlength=counts.size // counts.shape[-1] * width)
    np.add(counts, flat.reshape(*counts.shape[:-1], width)[..., :-1], out=counts, casting="unsafe")


def _first_visits(targets: Rows, unused: int) -> Rows:
    """Targets [k, token] with every repetition within a token replaced by `unused`."""
    visits = targets.copy()
    for k in range(1, len(targets)):
        visits[k][(targets[:k] == targets[k]).any(axis=0)] = unused
    return visits
