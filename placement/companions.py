"""The companions' linear programme behind `destination_bounds.companions_bound`.

z[e, f] in 0..1, symmetric: experts e and f are companions, they share a part. s[t, e] >= 1 / (1 + companions of e among
the other experts of token t), by the chords of 1/m between whole m, which are exact at whole m.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from placement.linear import LinearProgramme, solve_linear
from placement.plan import FloatArray

IntArray = NDArray[np.intp]

CUT_ROUNDS = 3  # solves, each but the first with new triangle inequalities; the third gained 1e-5 on real traces
CUTS_PER_ROUND = 2000
VIOLATED = 1e-3  # by more than this a triangle inequality is worth a row


def companions_total(rows: IntArray, weights: FloatArray, *, n_experts: int, n_parts: int, room: int) -> float:
    """Lower bound on the visits of all tokens [parts], for distinct rows intp[row, k] of weights float64[row]."""
    pair = _pair_numbers(n_experts)
    programme = _programme(rows, weights, pair, n_parts, room)
    replicas = n_parts * room > n_experts
    best = -np.inf
    for _ in range(1 if replicas else CUT_ROUNDS):
        solution, bound = solve_linear(programme, method="highs-ipm")
        best = max(best, bound)
        cuts = _violated_triangles(solution[: pair.max() + 1][pair] * (1 - np.eye(n_experts)))
        if replicas or len(cuts) == 0 or not np.isfinite(bound):
            break
        programme = _with_triangles(programme, cuts, pair)
    return best


def _pair_numbers(n_experts: int) -> IntArray:
    """Number of each unordered pair of experts, intp[expert, expert], symmetric; 0 on the diagonal, unused."""
    pair = np.zeros((n_experts, n_experts), np.intp)
    upper = np.triu_indices(n_experts, 1)
    pair[upper] = np.arange(len(upper[0]))
    return np.maximum(pair, pair.T)


def _programme(rows: IntArray, weights: FloatArray, pair: IntArray, n_parts: int, room: int) -> LinearProgramme:
    """Variables: z of every pair, then s[row, place], then the copies of each expert (1 each without replicas)."""
    n_experts, n_pairs = len(pair), len(pair) * (len(pair) - 1) // 2
    k = rows.shape[1]
    n_shares = rows.size
    copies_most = 1.0 if n_parts * room == n_experts else float(n_parts)
    chords, limit = _chords(rows, pair, n_pairs, n_experts)
    degree, level = _degrees(pair, n_pairs + n_shares, room)
    width = n_pairs + n_shares + n_experts
    slots = scipy.sparse.csr_array(
        (np.ones(n_experts), (np.zeros(n_experts, int), np.arange(width - n_experts, width))), (1, width)
    )
    no_replicas = copies_most == 1.0
    return LinearProgramme(
        cost=np.concatenate([np.zeros(n_pairs), np.repeat(weights, k), np.zeros(n_experts)]),
        at_most=chords if no_replicas else scipy.sparse.vstack([chords, degree]).tocsr(),
        limit=limit if no_replicas else np.concatenate([limit, level]),
        equal=scipy.sparse.vstack([degree, slots]).tocsr() if no_replicas else slots,
        level=np.append(level, n_experts) if no_replicas else np.array([float(n_parts * room)]),
        lower=np.concatenate([np.zeros(n_pairs + n_shares), np.ones(n_experts)]),
        upper=np.concatenate([np.ones(n_pairs + n_shares), np.full(n_experts, copies_most)]),
    )


def _chords(rows: IntArray, pair: IntArray, n_pairs: int, n_experts: int) -> tuple[Any, FloatArray]:
    """slope_m * (companions of e in t) - s[t, e] <= slope_m (m - 1) - 1/m for m = 1..k - 1."""
    n_rows, k = rows.shape
    others = np.array([[j for j in range(k) if j != place] for place in range(k)], dtype=np.intp).reshape(k, k - 1)
    companions = pair[rows[:, :, None], rows[:, others]].reshape(n_rows * k, k - 1)
    tops = np.arange(1, max(k, 2))
    slopes = 1.0 / (tops + 1) - 1.0 / tops
    n_shares, n_chords = n_rows * k, len(tops)
    number = np.arange(n_shares * n_chords).reshape(n_shares, n_chords)
    row = np.concatenate([np.repeat(number.ravel(), k - 1), number.ravel()])
    share = n_pairs + np.repeat(np.arange(n_shares), n_chords)
    column = np.concatenate([np.repeat(companions[:, None, :], n_chords, axis=1).ravel(), share])
    value = np.concatenate([np.tile(np.repeat(slopes, k - 1), n_shares), np.full(number.size, -1.0)])
    matrix = scipy.sparse.coo_array((value, (row, column)), shape=(number.size, n_pairs + n_shares + n_experts)).tocsr()
    return matrix, np.tile(slopes * (tops - 1) - 1.0 / tops, n_shares)


def _degrees(pair: IntArray, first_copy: int, room: int) -> tuple[Any, FloatArray]:
    """companions of e - (room - 1) copies of e <= 0; without replicas equal to 0, with one copy each."""
    n_experts = len(pair)
    e, f = np.nonzero(~np.eye(n_experts, dtype=bool))
    own = np.arange(n_experts)
    row, column = np.concatenate([e, own]), np.concatenate([pair[e, f], first_copy + own])
    value = np.concatenate([np.ones(len(e)), np.full(n_experts, -(room - 1.0))])
    matrix = scipy.sparse.coo_array((value, (row, column)), shape=(n_experts, first_copy + n_experts)).tocsr()
    return matrix, np.zeros(n_experts)


def _violated_triangles(z: FloatArray) -> IntArray:
    """Triples (e, f, g) with z_ef + z_eg - z_fg > 1, worst first, intp[cut, 3]: companions of e are companions."""
    found: list[NDArray[np.intp]] = []
    excess: list[FloatArray] = []
    for e, row in enumerate(z):
        over = row[:, None] + row[None, :] - z - 1.0
        f, g = np.nonzero(np.triu(over > VIOLATED, 1))
        found.append(np.column_stack([np.full(len(f), e), f, g]))
        excess.append(over[f, g])
    order = np.argsort(-np.concatenate(excess), kind="stable")[:CUTS_PER_ROUND]
    return np.asarray(np.concatenate(found)[order], dtype=np.intp)


def _with_triangles(programme: LinearProgramme, cuts: IntArray, pair: IntArray) -> LinearProgramme:
    """The programme with z_ef + z_eg - z_fg <= 1 for each cut (e, f, g)."""
    e, f, g = cuts.T
    column = np.column_stack([pair[e, f], pair[e, g], pair[f, g]]).ravel()
    row = np.repeat(np.arange(len(cuts)), 3)
    value = np.tile([1.0, 1.0, -1.0], len(cuts))
    rows = scipy.sparse.coo_array((value, (row, column)), shape=(len(cuts), len(programme.cost)))
    return LinearProgramme(
        cost=programme.cost,
        at_most=scipy.sparse.vstack([programme.at_most, rows]).tocsr(),
        limit=np.concatenate([programme.limit, np.ones(len(cuts))]),
        equal=programme.equal,
        level=programme.level,
        lower=programme.lower,
        upper=programme.upper,
    )
