"""Which replica each token goes to: the physical slot of every routed token of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Quotas = Callable[[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]], NDArray[np.int64]]
MAX_ROUNDS = 64  # measured: peaks settle within 8 rounds for 32 experts on 8 ranks, 32 for 256 on 32 with 64 replicas
MAX_PERIOD = 840  # = lcm(1..8): tokens spread exactly evenly over up to 8 replicas, nearly so beyond


def even_table(slots_of_expert: NDArray[np.int32], n_ids: int, unused: int) -> NDArray[np.uint16]:
    """Slot of id e for the n-th token of a step at [e, n mod period]: replicas take turns, as in vLLM's EPLB.

    slots_of_expert int32[expert, copy], padded with -1; ids from the number of experts to `n_ids` map to `unused`.
    """
    if slots_of_expert.shape[1] == 1:
        table = np.full((n_ids, 1), unused, np.uint16)
        table[: len(slots_of_expert)] = slots_of_expert
        return table
    counts = (slots_of_expert >= 0).sum(axis=1)
    period = math.lcm(*(int(n) for n in np.unique(counts)))
    period = period if period <= MAX_PERIOD else MAX_PERIOD
    table = np.full((n_ids, period), unused, np.uint16)
    turn = np.arange(period)[None, :] % counts[:, None]
    table[: len(counts)] = np.take_along_axis(slots_of_expert, turn, axis=1)
    return table


def levelled_slots(
    experts: NDArray[np.int64],
    part: NDArray[np.int64],
    slots_of_expert: NDArray[np.int32],
    rank_of_slot: NDArray[np.int32],
    quotas_of: Quotas,
    liking: NDArray[np.int8] | None = None,
) -> NDArray[np.int64]:
    """Slot of every routed token, replicas filled so that the fullest rank of each part is low.

    experts, part  int64[routed token]: logical expert, and the part (step, chunk) whose tokens are balanced together.
    quotas_of      `greedy_quotas` (split least-loaded) or `even_quotas` (splits lp and lp-local).
    liking         int8[routed token, copy]: how much rather than others the token takes the copy; None: all alike.
    Tokens of one expert go to its replicas in order of arrival, those first that like the replica better than the later
    ones, each up to its quota.
    """
    n_experts, n_copies = slots_of_expert.shape
    n_parts = int(part.max()) + 1 if len(part) else 0
    key = part * n_experts + experts
    counts = np.bincount(key, minlength=n_parts * n_experts).reshape(n_parts, n_experts)
    quotas = quotas_of(counts, slots_of_expert, rank_of_slot).reshape(-1, n_copies)
    copy = np.zeros(len(key), np.int64)
    left = np.flatnonzero((slots_of_expert[:, 1] >= 0)[experts]) if n_copies > 1 else np.zeros(0, np.int64)
    for number in range(n_copies):
        if liking is None or number == n_copies - 1:
            order = _by_key(left, key)
        else:
            rather = liking[left, number] - liking[left, number + 1 :].max(axis=1)
            order = _by_key(left[np.argsort(-rather, kind="stable")], key)
        sizes = np.bincount(key[order], minlength=n_parts * n_experts)
        turn = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        taken = turn < quotas[key[order], number]
        copy[order[taken]] = number
        left = np.sort(order[~taken])
    return slots_of_expert[experts, copy].astype(np.int64)


def _by_key(tokens: NDArray[np.int64], key: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tokens ordered by their key >= 0, those of one key as they were."""
    keys = key[tokens]
    small = len(keys) > 0 and int(keys.max()) <= np.iinfo(np.uint16).max  # numpy sorts 16 bits in linear time
    return tokens[np.argsort(keys.astype(np.uint16) if small else keys, kind="stable")]


def greedy_quotas(
    counts: NDArray[np.int64], slots_of_expert: NDArray[np.int32], rank_of_slot: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Tokens that each replica takes, int64[part, expert, copy], from counts int64[part, expert].

    Experts with one replica are fixed first; then, from the largest expert on, replicas are levelled (water filling).
    Of several replicas on one rank only the first takes tokens: the others would stream their weights for nothing.
    """
    quotas = np.zeros((*counts.shape, slots_of_expert.shape[1]), np.int64)
    copies = (slots_of_expert >= 0).sum(axis=1)
    load = np.zeros((len(counts), int(rank_of_slot.max()) + 1), np.int64)
    for expert in np.flatnonzero(copies == 1):
        quotas[:, expert, 0] = counts[:, expert]
        load[:, rank_of_slot[slots_of_expert[expert, 0]]] += counts[:, expert]
    several = np.flatnonzero(copies > 1)
    for expert in several[np.argsort(-counts.sum(axis=0)[several], kind="stable")]:
        ranks, first = np.unique(rank_of_slot[slots_of_expert[expert, : copies[expert]]], return_index=True)
        level = _levelled(load[:, ranks], counts[:, expert])
        quotas[:, expert, first] = level
        load[:, ranks] += level
    return quotas


def even_quotas(
    counts: NDArray[np.int64], slots_of_expert: NDArray[np.int32], rank_of_slot: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Tokens that each replica takes, int64[part, expert, copy], so that the fullest rank is as low as splitting can.

    The programme of LPLB: min z with sum of an expert's replicas = its tokens, every rank <= z. Levelling one expert
    after the other again and again lowers the sum of squared loads until none can; over fractions of tokens that is the
    optimum, since the split with the least squares also has the lowest peak (Veinott, Manage. Sci. 17, 1971). Whole
    tokens stop a few tokens above it.
    """
    quotas = greedy_quotas(counts, slots_of_expert, rank_of_slot)
    several = _replicated(counts, slots_of_expert, rank_of_slot)
    load = _rank_tokens(quotas, slots_of_expert, rank_of_slot)
    squares = np.inf
    for _ in range(MAX_ROUNDS):
        before, squares = squares, float((load.astype(np.float64) ** 2).sum())
        if squares >= before:
            break
        for expert, ranks, first in several:
            load[:, ranks] -= quotas[:, expert, first]
            level = _levelled(load[:, ranks], counts[:, expert])
            quotas[:, expert, first] = level
            load[:, ranks] += level
    return quotas


def exact_peak(
    counts: NDArray[np.int64], slots_of_expert: NDArray[np.int32], rank_of_slot: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Lowest possible tokens of the fullest rank, float64[part], over all splits into fractions, by HiGHS (scipy).

    The referee of `even_quotas`: one linear programme a part, slow.
    """
    from scipy.optimize import linprog

    copies = np.argwhere(slots_of_expert >= 0)
    ranks = rank_of_slot[slots_of_expert[copies[:, 0], copies[:, 1]]]
    n_experts, n_ranks, n = len(slots_of_expert), int(rank_of_slot.max()) + 1, len(copies)
    sums, peaks = np.zeros((n_experts, n + 1)), np.zeros((n_ranks, n + 1))
    sums[copies[:, 0], np.arange(n)] = 1
    peaks[ranks, np.arange(n)] = 1
    peaks[:, n] = -1
    cost = np.append(np.zeros(n), 1.0)
    solved = [linprog(cost, A_ub=peaks, b_ub=np.zeros(n_ranks), A_eq=sums, b_eq=row, method="highs") for row in counts]
    return np.array([result.fun for result in solved])


def _replicated(
    counts: NDArray[np.int64], slots_of_expert: NDArray[np.int32], rank_of_slot: NDArray[np.int32]
) -> list[tuple[int, NDArray[np.int32], NDArray[np.intp]]]:
    """(expert, its ranks, the first copy on each), largest expert first; only experts on several ranks."""
    copies = (slots_of_expert >= 0).sum(axis=1)
    found = []
    for expert in np.argsort(-counts.sum(axis=0), kind="stable"):
        ranks, first = np.unique(rank_of_slot[slots_of_expert[expert, : copies[expert]]], return_index=True)
        if len(ranks) > 1:
            found.append((int(expert), ranks, first))
    return found


def _rank_tokens(
    quotas: NDArray[np.int64], slots_of_expert: NDArray[np.int32], rank_of_slot: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Tokens of every rank, int64[part, rank]."""
    load = np.zeros((len(quotas), int(rank_of_slot.max()) + 1), np.int64)
    for expert, copy in np.argwhere(slots_of_expert >= 0):
        load[:, rank_of_slot[slots_of_expert[expert, copy]]] += quotas[:, expert, copy]
    return load


def _levelled(load: NDArray[np.int64], amount: NDArray[np.int64]) -> NDArray[np.int64]:
    """How much each of the vessels load[part, vessel] takes of amount[part] so that the fullest stays lowest."""
    order = np.argsort(load, axis=1, kind="stable")
    sorted_load = np.take_along_axis(load, order, axis=1)
    n = np.arange(1, load.shape[1] + 1)
    room = sorted_load * n - np.cumsum(sorted_load, axis=1)
    used = (room <= amount[:, None]).sum(axis=1)
    total = np.take_along_axis(np.cumsum(sorted_load, axis=1), used[:, None] - 1, axis=1)[:, 0] + amount
    level, extra = total // used, total % used
    place = np.arange(load.shape[1])[None, :]
    target = level[:, None] + (place < extra[:, None])
    taken = np.where(place < used[:, None], target - sorted_load, 0)
    result = np.empty_like(taken)
    np.put_along_axis(result, order, taken, axis=1)
    return result
