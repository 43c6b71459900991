"""The best chain of splits, one of each layer's candidates, by dynamic programming; exact affinity for few experts.

Ranks are alike, so a layer's state is an unlabelled split of its experts; the best way to name the ranks of the next
layer depends on the two splits alone (Viterbi over splits). With all splits as candidates this is the optimum.
A term of each layer alone (here: its busiest rank) keeps that true. Assumes context-coherent execution, as `affinity`.
"""

from __future__ import annotations

from itertools import combinations, permutations
from math import factorial

import numpy as np
import scipy

from placement.affinity import IntArray, aligned, check_affinity
from placement.plan import FloatArray
from scenarios.errors import PlacementInfeasible

MOST_SPLITS = 400  # 280 splits of 9 experts on 3 ranks, 105 of 8 on 4; more would take minutes
MOST_NAMINGS = 24  # up to 4 ranks all namings are tried at once; beyond, one assignment a pair of splits


def n_splits(n_experts: int, n_ranks: int) -> int:
    """Number of unlabelled splits of the experts into equal ranks, E! / ((E/G)!^G G!)."""
    alike: int = factorial(n_experts // n_ranks) ** n_ranks * factorial(n_ranks)
    return factorial(n_experts) // alike


def chain_exact(
    transitions: FloatArray, n_ranks: int, *, loads: FloatArray | None = None, load_weight: float = 0.0
) -> tuple[IntArray, float]:
    """The optimal rank of every expert, intp[layer, expert], and its value [tokens].

    Value: tokens that stay, less `load_weight` times the tokens of every layer's busiest rank (`loads`
    float64[layer, expert]). Raises PlacementInfeasible where there are too many splits.
    """
    check_affinity(transitions, n_ranks)
    n_layers, n_experts = len(transitions) + 1, transitions.shape[1]
    count = n_splits(n_experts, n_ranks)
    if count > MOST_SPLITS:
        raise PlacementInfeasible(
            f"{n_experts} experts on {n_ranks} ranks can be split in more than {MOST_SPLITS} ways, too many to chain; "
            "use solver alsa, whose bound states its gap"
        )
    splits = _all_splits(n_experts, n_ranks)
    penalty = np.zeros((n_layers, count))
    if loads is not None:
        on_rank = np.eye(n_ranks)[splits]
        penalty = load_weight * np.einsum("le,seg->lsg", loads, on_rank).max(axis=2)
    return best_chain(transitions, np.broadcast_to(splits, (n_layers, *splits.shape)), n_ranks, penalty)


def best_chain(
    transitions: FloatArray, splits: IntArray, n_ranks: int, penalty: FloatArray | None = None
) -> tuple[IntArray, float]:
    """The best rank of every expert, intp[layer, expert], that uses one candidate split of each layer, and its value.

    splits   intp[layer, candidate, expert]  rank of each expert; which name a rank has does not matter.
    penalty  float64[layer, candidate]       taken off the tokens that stay; none by default.
    """
    n_layers, n_candidates = splits.shape[:2]
    minus = np.zeros((n_layers, n_candidates)) if penalty is None else penalty
    value = -minus[0]
    best_before = np.zeros((n_layers, n_candidates), np.intp)
    for layer, counts in enumerate(transitions, start=1):
        reached = value[:, None] + _pair_values(counts, splits[layer - 1], splits[layer], n_ranks)
        best_before[layer] = reached.argmax(axis=0)
        value = reached.max(axis=0) - minus[layer]
    chosen = np.zeros(n_layers, np.intp)
    chosen[-1] = value.argmax()
    for layer in range(n_layers - 1, 0, -1):
        chosen[layer - 1] = best_before[layer, chosen[layer]]
    return aligned(transitions, splits[np.arange(n_layers), chosen], n_ranks), float(value.max())


def _all_splits(n_experts: int, n_ranks: int) -> IntArray:
    """Every unlabelled split once, intp[split, expert]: rank g holds the smallest expert that ranks below g do not."""
    room = n_experts // n_ranks
    found: list[list[int]] = []

    def fill(ranks: list[int], rank: int) -> None:
        free = [e for e, r in enumerate(ranks) if r < 0]
        if not free:
            found.append(ranks)
            return
        for others in combinations(free[1:], room - 1):
            taken = {free[0], *others}
            fill([rank if e in taken else r for e, r in enumerate(ranks)], rank + 1)

    fill([-1] * n_experts, 0)
    return np.array(found, dtype=np.intp)


def _pair_values(counts: FloatArray, before: IntArray, after: IntArray, n_ranks: int) -> FloatArray:
    """Tokens that stay between every two splits under the best naming, float64[split before, split after]."""
    sent = np.einsum("seg,ef->sgf", np.eye(n_ranks)[before], counts, optimize=True)
    flows = np.einsum("sgf,tfh->stgh", sent, np.eye(n_ranks)[after], optimize=True)
    names = np.arange(n_ranks)
    if factorial(n_ranks) <= MOST_NAMINGS:
        namings = permutations(range(n_ranks))
        tried = np.stack([flows[:, :, names, list(naming)].sum(axis=2) for naming in namings])
        return np.asarray(tried.max(axis=0))
    best = np.empty(flows.shape[:2])
    for index in np.ndindex(*best.shape):
        best[index] = flows[index][scipy.optimize.linear_sum_assignment(flows[index], maximize=True)].sum()
    return best
