"""Affinity at scale: alternating assignment from several starts, whose splits are then recombined exactly."""

from __future__ import annotations

import numpy as np

from placement.affinity import (
    IntArray,
    alternating_assignment,
    check_affinity,
    experts_per_rank,
    tokens_that_stay,
    transport,
)
from placement.chain import best_chain
from placement.plan import FloatArray

STARTS = 8  # of alternating assignment


def alsa(transitions: FloatArray, n_ranks: int, rng: np.random.Generator, *, starts: int = STARTS) -> IntArray:
    """A rank for every expert, intp[layer, expert]: the best of several alternating assignments, recombined.

    The first starts from spectral groups (`spectral_start`), the others from random balanced ones of `rng`. The best
    chain through all splits found follows, and one more alternating assignment from it.
    """
    check_affinity(transitions, n_ranks)
    n_layers, n_experts = len(transitions) + 1, transitions.shape[1]
    balanced = np.arange(n_experts) // experts_per_rank(n_experts, n_ranks)
    begin = [spectral_start(transitions, n_ranks)]
    begin += [np.stack([rng.permutation(balanced) for _ in range(n_layers)]) for _ in range(starts - 1)]
    found = [alternating_assignment(transitions, start, n_ranks) for start in begin]
    joined, _ = best_chain(transitions, np.stack(found, axis=1), n_ranks)
    found.append(alternating_assignment(transitions, joined, n_ranks))
    return max(found, key=lambda ranks: tokens_that_stay(transitions, ranks))


def spectral_start(transitions: FloatArray, n_ranks: int) -> IntArray:
    """Balanced groups of the first layer by its strongest singular vectors, carried forward layer by layer.

    Experts of the first layer are rows of the leading ranks - 1 left singular vectors of A_0 without its mean; they are
    grouped around ranks by assignment to farthest-point seeds; each later layer then follows the layer before it.
    """
    n_layers, n_experts = len(transitions) + 1, transitions.shape[1]
    room = experts_per_rank(n_experts, n_ranks)
    ranks = np.zeros((n_layers, n_experts), np.intp)
    ranks[0] = np.arange(n_experts) // room
    if n_layers == 1:
        return ranks
    centred = transitions[0] - transitions[0].mean(axis=1, keepdims=True)
    left, strength, _ = np.linalg.svd(centred - centred.mean(axis=0, keepdims=True))
    rows = left[:, : max(n_ranks - 1, 1)] * strength[: max(n_ranks - 1, 1)]
    ranks[0] = transport(-_distances(rows, _far_rows(rows, n_ranks)), room)
    for layer in range(1, n_layers):
        on_rank = np.eye(n_ranks)[ranks[layer - 1]]
        ranks[layer] = transport(transitions[layer - 1].T @ on_rank, room)
    return ranks


def _distances(rows: FloatArray, seeds: FloatArray) -> FloatArray:
    distances: FloatArray = ((rows[:, None, :] - seeds[None, :, :]) ** 2).sum(axis=2)
    return distances


def _far_rows(rows: FloatArray, n_seeds: int) -> FloatArray:
    """Rows far from each other: the longest one, then always the one farthest from those taken."""
    taken = [int((rows**2).sum(axis=1).argmax())]
    while len(taken) < n_seeds:
        taken.append(int(_distances(rows, rows[taken]).min(axis=1).argmax()))
    return rows[taken]
