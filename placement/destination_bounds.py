"""Lower bounds on the distinct parts (ranks, or nodes) that a token visits: lambda, home-return execution.

docs/background/placement-bounds.md has the proofs. Each holds for every placement; from weak to strong on real traces:

- `pairs_bound`        how many pairs of a token's experts can share a part at all;
- `companions_bound`   which experts can be companions, decided once for all tokens: a linear programme;
- `partition_bound`    sets of experts that fill a part: a set-partitioning programme over all of them.

experts  int[token, k]  distinct experts of each token. A part holds `room` slots: slots / parts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
import scipy
from numpy.typing import NDArray

from placement.companions import companions_total
from placement.plan import FloatArray
from scenarios.errors import PlacementError, PlacementInfeasible

IntArray = NDArray[np.intp]

MOST_SETS = 1_000_000  # sets enumerated by `partition_bound`: some seconds
QUICK_SETS = 100_000  # the same for `quick_bound`
PRICED_IN = 300  # sets that enter the programme in each round
MOST_ROUNDS = 60  # the bound holds after any number; 3 to 6 rounds reached the optimum on real traces
TOLERANCE = 1e-7  # of a token; reduced costs above minus this end the rounds


def destination_bound(
    experts: NDArray[np.integer], *, n_experts: int, n_parts: int, n_slots: int, most_sets: int = MOST_SETS
) -> float:
    """No placement sends a token to fewer distinct parts on average [parts per token].

    The set-partitioning bound where its sets can be enumerated and no expert has a replica, else the companions'; the
    pairs bound where it is higher, which happens on no trace that was tried.
    """
    if n_parts == 1:
        return 1.0
    if n_slots != n_experts:
        return companions_bound(experts, n_experts=n_experts, n_parts=n_parts, n_slots=n_slots)
    pairs = pairs_bound(experts, n_experts=n_experts, n_parts=n_parts)
    if comb(n_experts, n_slots // n_parts) <= most_sets:
        return max(pairs, partition_bound(experts, n_experts=n_experts, n_parts=n_parts))
    return max(pairs, companions_bound(experts, n_experts=n_experts, n_parts=n_parts, n_slots=n_slots))


def quick_bound(experts: NDArray[np.integer], *, n_experts: int, n_parts: int, n_slots: int) -> float:
    """The same in some 0.1 s for any number of tokens: set partitioning where it has few sets, else the pairs bound."""
    if n_parts == 1:
        return 1.0
    pairs = pairs_bound(experts, n_experts=n_experts, n_parts=n_parts, n_slots=n_slots)
    if n_slots != n_experts or comb(n_experts, n_slots // n_parts) > QUICK_SETS:
        return pairs
    return max(pairs, partition_bound(experts, n_experts=n_experts, n_parts=n_parts))


def least_visits(
    experts: NDArray[np.integer], bound: Callable[..., float], *, n_experts: int, n_parts: int, n_slots: int
) -> float:
    """Distinct parts of all tokens together at least, by one of the bounds on their mean [parts].

    experts  int[token, k]; unused places hold `n_experts`. A token without experts visits nothing.
    """
    total, counts = 0.0, (experts < n_experts).sum(axis=1)
    for used in np.unique(counts[counts > 0]).tolist():
        # The largest id stands for unused places: sorting puts them last.
        own = np.sort(experts[counts == used], axis=1)[:, :used]
        total += len(own) * bound(own, n_experts=n_experts, n_parts=n_parts, n_slots=n_slots)
    return total


def visits_per_token(experts: NDArray[np.integer], part_of_expert: IntArray) -> float:
    """Mean distinct parts of a token [parts per token] without replicas, from the part of each expert intp[expert]."""
    parts = np.sort(part_of_expert[experts], axis=1)
    return float(1.0 + (np.diff(parts, axis=1) > 0).sum(axis=1).mean())


def pairs_bound(experts: NDArray[np.integer], *, n_experts: int, n_parts: int, n_slots: int | None = None) -> float:
    """The convex envelope's bound on parts per token: what the others are measured against; `n_slots`: with replicas.

    A token in n parts has at least the pairs of its most even split; by Jensen the mean number of pairs that share a
    part, at most P, bounds the mean of n. P: the strongest (room - 1) c partners of every expert, over all numbers of
    copies c; without replicas also the spectral bound (1'C1 / G + S sum_{i < G} eigenvalue_i(P C P)) / 2 of the
    co-activations C, where it is lower.
    """
    slots = n_experts if n_slots is None else n_slots
    room = _room(slots, n_parts)
    k = experts.shape[1]
    together = _pair_counts(experts, n_experts)
    most = _strongest_partners(together, room, slots - n_experts)
    if slots == n_experts:
        centred = together - together.mean(axis=0)
        strengths = np.linalg.eigvalsh(centred - centred.mean(axis=1, keepdims=True))[::-1]
        most = min(most, (together.sum() / n_parts + room * strengths[: n_parts - 1].sum()) / 2)
    share = most / len(experts)
    numbers = np.arange(-(-k // room), min(k, n_parts) + 1)
    evenly = np.array([(k % n) * comb(k // n + 1, 2) + (n - k % n) * comb(k // n, 2) for n in numbers], dtype=float)
    result = scipy.optimize.linprog(
        numbers, A_ub=[evenly], b_ub=[share], A_eq=[np.ones(len(numbers))], b_eq=[1.0], method="highs"
    )
    return float(numbers[0]) if result.fun is None else float(result.fun)


def _strongest_partners(together: FloatArray, room: int, redundant: int) -> float:
    """Pairs that share a part at most: an expert has room - 1 partners on the part of each of its copies."""
    if room == 1:
        return 0.0
    n_experts = len(together)
    descending = -np.sort(-together, axis=1)  # an expert and itself count 0, and so come last
    blocks = np.add.reduceat(descending, np.arange(0, n_experts, room - 1), axis=1)
    further = np.sort(blocks[:, 1:].ravel())[::-1]
    return float(blocks[:, 0].sum() + further[:redundant].sum()) / 2


def companions_bound(experts: NDArray[np.integer], *, n_experts: int, n_parts: int, n_slots: int) -> float:
    """The companions' bound on parts per token; replicas are allowed, and tokens may choose among them freely.

    A token's visit to a part is shared by the m of its experts that run there, 1/m each, and m - 1 is at most the
    number of the token's experts that are companions (share some part). Who is whose companion is decided once for all
    tokens, by a linear programme.
    """
    _check_tokens(experts, n_experts)
    if n_slots % n_parts or n_slots < n_experts:
        raise PlacementInfeasible(f"{n_slots} slots for {n_experts} experts do not fill {n_parts} equal parts")
    rows, weights = _distinct(experts)
    total = companions_total(rows, weights, n_experts=n_experts, n_parts=n_parts, room=n_slots // n_parts)
    fewest = -(-experts.shape[1] // (n_slots // n_parts))
    return max(total / len(experts), float(fewest))


def partition_bound(experts: NDArray[np.integer], *, n_experts: int, n_parts: int) -> float:
    """The set-partitioning bound on parts per token, without replicas.

    min sum_B c(B) y_B, sum_{B with e} y_B = 1, over all sets B of `room` experts, c(B) = tokens that visit B. Solved by
    column generation (Johnson, Mehrotra and Nemhauser, "Min-cut clustering", 1993) with exact pricing by enumeration.
    For any prices p, every placement costs at least sum p + parts * min_B (c(B) - p(B)): no tolerance enters.
    """
    room = _room(n_experts, n_parts)
    _check_tokens(experts, n_experts)
    sets = _all_sets(n_experts, room)
    visits = _visits(experts, sets, n_experts)
    cheap = np.argpartition(visits, min(PRICED_IN, len(sets) - 1))[:PRICED_IN]
    blocks = (np.arange(n_experts).reshape(n_parts, room) == sets[:, None, :]).all(axis=2).any(axis=1)
    columns = np.union1d(cheap, np.flatnonzero(blocks))  # the blocks of consecutive experts make it feasible
    best = 0.0
    for _ in range(MOST_ROUNDS):
        member = np.zeros((n_experts, len(columns)))
        member[sets[columns], np.arange(len(columns))[:, None]] = 1.0
        result = scipy.optimize.linprog(visits[columns], A_eq=member, b_eq=np.ones(n_experts), method="highs")
        if not result.success:
            break
        prices = result.eqlin.marginals
        reduced = visits - prices[sets].sum(axis=1)
        best = max(best, float(prices.sum() + n_parts * reduced.min()))
        if reduced.min() >= -TOLERANCE:
            break
        columns = np.union1d(columns, np.argpartition(reduced, min(PRICED_IN, len(sets) - 1))[:PRICED_IN])
    return best / len(experts)


def _all_sets(n_experts: int, room: int) -> NDArray[np.int16]:
    """Every set of `room` experts once, int16[set, room], ascending."""
    sets = np.arange(n_experts, dtype=np.int16)[:, None]
    for _ in range(room - 1):
        more = n_experts - 1 - sets[:, -1].astype(np.intp)
        first = np.repeat(np.cumsum(more) - more, more)
        added = np.repeat(sets[:, -1] + 1, more) + (np.arange(more.sum()) - first)
        sets = np.column_stack([np.repeat(sets, more, axis=0), added.astype(np.int16)])
    return sets


def _visits(experts: NDArray[np.integer], sets: NDArray[np.int16], n_experts: int) -> FloatArray:
    """Tokens that have at least one expert of each set, float64[set], exact.

    By inclusion and exclusion over the subsets of a set: sum over j of (-1)^(j + 1) tokens that have all j of them. How
    many tokens there are hardly matters.
    """
    visits, rows = np.zeros(len(sets)), np.sort(experts, axis=1)
    for size in range(1, min(rows.shape[1], sets.shape[1]) + 1):
        counts = _subset_counts(rows, size, n_experts)
        for places in combinations(range(sets.shape[1]), size):
            visits -= (-1) ** size * counts[_ranks(sets[:, places], n_experts)]
    return visits


def _subset_counts(rows: NDArray[np.integer], size: int, n_experts: int) -> FloatArray:
    """Tokens that have all experts of a subset, float64[rank of the subset], for all subsets of `size` experts.

    rows  int[token, k]  experts of each token, ascending.
    """
    counts = np.zeros(comb(n_experts, size))
    for places in combinations(range(rows.shape[1]), size):
        counts += np.bincount(_ranks(rows[:, places], n_experts), minlength=len(counts))
    return counts


def _ranks(subsets: NDArray[np.integer], n_experts: int) -> IntArray:
    """Number of each ascending subset int[subset, place] among all of its size: sum of C(expert, place + 1)."""
    total = np.zeros(len(subsets), np.intp)
    for place in range(subsets.shape[1]):
        total += np.array([comb(e, place + 1) for e in range(n_experts)], np.intp)[subsets[:, place]]
    return total


def _pair_counts(experts: NDArray[np.integer], n_experts: int) -> FloatArray:
    """Tokens with both experts, float64[expert, expert]; 0 on the diagonal."""
    together = np.zeros((n_experts, n_experts))
    second, first = np.tril_indices(n_experts, -1)  # in the order of `_ranks`: by the larger expert, then the smaller
    together[first, second] = together[second, first] = _subset_counts(np.sort(experts, axis=1), 2, n_experts)
    return together


def _distinct(experts: NDArray[np.integer]) -> tuple[IntArray, FloatArray]:
    """Tokens with the same experts once, intp[row, k] ascending, and how many there are of each, float64[row]."""
    rows, counts = np.unique(np.sort(experts, axis=1), axis=0, return_counts=True)
    return rows.astype(np.intp), counts.astype(np.float64)


def _room(n_slots: int, n_parts: int) -> int:
    if n_parts < 1 or n_slots % n_parts:
        raise PlacementInfeasible(f"{n_slots} experts do not divide over {n_parts} parts; the bound needs equal ones")
    return n_slots // n_parts


def _check_tokens(experts: NDArray[np.integer], n_experts: int) -> None:
    if experts.ndim != 2 or experts.size == 0:
        raise PlacementError(f"experts must be [token, k] with at least one token, got shape {experts.shape}")
    if experts.min() < 0 or experts.max() >= n_experts:
        raise PlacementError(f"experts {experts.min()}..{experts.max()} of tokens are not within 0..{n_experts - 1}")
    if (np.diff(np.sort(experts, axis=1), axis=1) == 0).any():
        raise PlacementError("a token lists an expert twice; its k experts must be distinct")
