"""Inter-layer affinity: experts placed so that tokens find their next expert on the rank where the last one ran.

Everything here assumes *context-coherent* execution (ExFlow, arXiv 2401.08383): a token stays on the rank of its last
expert, and only a change of rank costs a transfer. Under home-return execution none of it enters the traffic.

transitions      float64[layer - 1, expert, expert]  tokens that go from expert e of a layer to expert f of the next.
rank_of_expert   intp[layer, expert]  rank of each expert; every rank holds experts / ranks of each layer.
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray

from placement.eplb import balanced_packing
from placement.plan import FloatArray
from scenarios.errors import PlacementError, PlacementInfeasible

IntArray = NDArray[np.intp]

GAIN = 1e-12  # relative; a smaller gain of a sweep is rounding


def tokens_that_stay(transitions: FloatArray, rank_of_expert: IntArray) -> float:
    """Tokens whose next expert lies on their present rank [tokens], over all layers."""
    layers = zip(transitions, rank_of_expert[:-1], rank_of_expert[1:], strict=True)
    return sum(float(counts[here[:, None] == there[None, :]].sum()) for counts, here, there in layers)


def alternating_assignment(transitions: FloatArray, start: IntArray, n_ranks: int) -> IntArray:
    """A rank for every expert, intp[layer, expert]: each layer is optimal given its neighbours (ALSA).

    Layer l with both neighbours fixed is a transportation problem with the benefit
    B[e, g] = sum_f A_{l-1}[f, e] [r(f) = g] + sum_f A_l[e, f] [r(f) = g], solved exactly by assignment to experts /
    ranks copies of each rank. Sweeps forth and back until none gains: a local optimum, never worse than `start`.
    """
    ranks = start.copy()
    room = experts_per_rank(ranks.shape[1], n_ranks)
    best = tokens_that_stay(transitions, ranks)
    n_layers = len(ranks)
    while True:
        for layer in (*range(n_layers), *range(n_layers - 2, -1, -1)):
            ranks[layer] = transport(_benefit(transitions, ranks, n_ranks, layer), room)
        value = tokens_that_stay(transitions, ranks)
        if value <= best * (1 + GAIN):
            return ranks
        best = value


def aligned(transitions: FloatArray, groups: IntArray, n_ranks: int) -> IntArray:
    """The same groups with ranks renamed so that consecutive layers keep most tokens, intp[layer, expert].

    With uniform links the second stage of MoETuner is one ranks x ranks assignment per pair of layers, and solving them
    one after the other is exact: renaming layer l + 1 does not change the pairs before it.
    """
    ranks = groups.copy()
    for layer, counts in enumerate(transitions):
        here = np.eye(n_ranks)[ranks[layer]]
        there = np.eye(n_ranks)[ranks[layer + 1]]
        row, column = scipy.optimize.linear_sum_assignment(here.T @ counts @ there, maximize=True)
        name = np.empty(n_ranks, np.intp)
        name[column] = row
        ranks[layer + 1] = name[ranks[layer + 1]]
    return ranks


def two_stage(transitions: FloatArray, loads: FloatArray, n_ranks: int) -> IntArray:
    """MoETuner's two stages, intp[layer, expert]: groups of equal load first, then ranks for the groups.

    Source: arXiv 2502.06643, section 5. Stage 1 is blind to affinity; it is solved here by longest-first packing, whose
    gap to the counting bound is small, with experts / ranks experts per group (the printed programme leaves sizes
    free). Stage 2 by `aligned`, exact for uniform links; the published maximum over links becomes a sum.
    """
    n_layers, n_experts = loads.shape
    room = experts_per_rank(n_experts, n_ranks)
    packed = balanced_packing(loads, n_ranks)
    groups = np.empty((n_layers, n_experts), np.intp)
    np.put_along_axis(groups, packed, np.broadcast_to(np.arange(n_experts) // room, packed.shape), axis=1)
    return aligned(transitions, groups, n_ranks)


def check_affinity(transitions: FloatArray, n_ranks: int) -> None:
    """Raise PlacementError where counts are malformed, PlacementInfeasible where ranks do not divide the experts."""
    if transitions.ndim != 3 or transitions.shape[1] != transitions.shape[2] or transitions.shape[1] == 0:
        raise PlacementError(f"transitions must be [layer - 1, expert, expert], got shape {transitions.shape}")
    if not np.isfinite(transitions).all() or (transitions < 0).any():
        raise PlacementError("transitions hold a negative or infinite number of tokens; counts are >= 0")
    experts_per_rank(transitions.shape[1], n_ranks)


def experts_per_rank(n_experts: int, n_ranks: int) -> int:
    """Experts of a layer on each rank; raises PlacementInfeasible where they do not divide."""
    if n_ranks < 1 or n_experts % n_ranks:
        divisors = [n for n in range(1, n_experts + 1) if n_experts % n == 0]
        raise PlacementInfeasible(
            f"{n_experts} experts do not divide over {n_ranks} ranks, and affinity solvers place each expert once; "
            f"ranks may be {', '.join(map(str, divisors))}"
        )
    return n_experts // n_ranks


def _benefit(transitions: FloatArray, ranks: IntArray, n_ranks: int, layer: int) -> FloatArray:
    """Tokens that stay by expert and rank, float64[expert, rank], with both neighbouring layers fixed."""
    benefit = np.zeros((ranks.shape[1], n_ranks))
    if layer > 0:
        benefit += transitions[layer - 1].T @ np.eye(n_ranks)[ranks[layer - 1]]
    if layer < len(transitions):
        benefit += transitions[layer] @ np.eye(n_ranks)[ranks[layer + 1]]
    return benefit


def transport(benefit: FloatArray, room: int) -> IntArray:
    """Rank of each expert, intp[expert], with the largest total benefit float64[expert, rank] and `room` per rank."""
    _, columns = scipy.optimize.linear_sum_assignment(np.repeat(benefit, room, axis=1), maximize=True)
    return np.asarray(columns // room, dtype=np.intp)
