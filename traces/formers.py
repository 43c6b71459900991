"""Batch formers: which of the requests that wait go through the model together.

A device's `pool` times `size` requests wait; what each will route to is known, or predicted. Formers see the routes of
every request's next token and say who is in which batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Routes = NDArray[np.bool_]
"""bool[request, layer and expert]: the experts that each request's next token goes to."""
Places = NDArray[np.int64]
MOST_ROUNDS = 8  # of clustering; it settles in two or three

Former = Callable[[Routes, int], list[Places]]
"""(routes, size) -> batches of so many of the requests. Requests in none of them keep waiting with the same token."""


def arrival(routes: Routes, size: int) -> list[Places]:
    """All requests in the order in which they wait."""
    return list(np.arange(len(routes)).reshape(-1, size))


def expert_aware(routes: Routes, size: int) -> list[Places]:
    """One batch: again and again the request that brings the fewest further experts (Read-ME, arXiv 2410.19123).

    Among equals that whose experts most requests wait for, then the first. With one expert a token that is Read-ME's
    rule: queues by expert, the longest first, until the batch is full. A request may wait for long.
    """
    waits = routes.sum(axis=0) @ routes.T
    fresh = routes.sum(axis=1)
    open_experts, waiting = np.ones(routes.shape[1], bool), np.ones(len(routes), bool)
    chosen = np.empty(size, np.int64)
    for place in range(size):
        order = np.where(waiting, fresh * (waits.max() + 1) - waits, np.iinfo(np.int64).max)
        chosen[place] = first = int(order.argmin())
        waiting[first] = False
        brought = np.flatnonzero(routes[first] & open_experts)
        fresh = fresh - routes[:, brought].sum(axis=1)
        open_experts[brought] = False
    return [chosen]


def similar(routes: Routes, size: int) -> list[Places]:
    """All requests in clusters of like routes (ExpertFlow, arXiv 2410.17954), or in order where that is better.

    K-means on routes as bits, with the Hamming distance to a cluster's mean route, x (1 - 2 m) + sum m, and clusters of
    `size`: every round is an assignment problem. The first means are routes far from each other.
    """
    in_order = arrival(routes, size)
    means = _far_apart(routes, len(in_order))
    clusters = in_order
    for _ in range(MOST_ROUNDS):
        found = _assigned(routes, means, size)
        if all(map(np.array_equal, found, clusters)):
            break
        clusters = found
        means = np.stack([routes[cluster].mean(axis=0) for cluster in clusters])
    return min(in_order, clusters, key=lambda batches: sum(distinct(routes, batch) for batch in batches))


FORMERS: dict[str, Former] = {"arrival": arrival, "expert-aware": expert_aware, "similar": similar}


def distinct(routes: Routes, batch: Places) -> int:
    """Different experts of a batch, all layers together."""
    return int(routes[batch].any(axis=0).sum())


def least_distinct(uses: NDArray[np.integer], size: int) -> int:
    """A bound: (batch, expert) pairs of any division of tokens into batches of `size`, given uses int[..., expert].

    An expert with n tokens is in ceil(n / size) batches at least.
    """
    return int((-(-uses // size)).sum())


def _far_apart(routes: Routes, n: int) -> NDArray[np.float64]:
    """Routes of `n` requests: the first, then that with the largest distance to the nearest of those before."""
    chosen = [0]
    nearest = np.full(len(routes), np.inf)
    for _ in range(n - 1):
        nearest = np.minimum(nearest, (routes != routes[chosen[-1]]).sum(axis=1))
        chosen.append(int(nearest.argmax()))
    return routes[chosen].astype(np.float64)


def _assigned(routes: Routes, means: NDArray[np.float64], size: int) -> list[Places]:
    """The division into clusters of `size` with the least sum of distances."""
    from scipy.optimize import linear_sum_assignment  # takes longer to import than a small run

    distance = routes @ (1 - 2 * means).T + means.sum(axis=1)
    _, column = linear_sum_assignment(np.repeat(distance, size, axis=1))
    return [np.flatnonzero(column // size == cluster) for cluster in range(len(means))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forming:
    """How batches are formed: by which former, of how many batches that wait, with which recall of its prediction."""

    by: Literal["arrival", "expert-aware", "similar"] = "arrival"
    pool: int = 1
    recall: float = 1.0


def formed(
    upcoming: NDArray[np.int64],
    routes_of: Callable[[NDArray[np.int64]], Routes],
    shape: tuple[int, int],
    by: str,
) -> NDArray[np.int64]:
    """Tokens of the batches of one device, int64[step, token]; `shape` is that.

    upcoming   int64[turn, request]: the tokens of every request that waits, in order; at least as many turns as steps.
    routes_of  the routes of some tokens, known or predicted.
    """
    n_steps, size = shape
    turn = np.zeros(upcoming.shape[1], np.int64)
    request = np.arange(len(turn))
    steps: list[NDArray[np.int64]] = []
    while len(steps) < n_steps:
        tokens = upcoming[turn, request]
        for batch in FORMERS[by](routes_of(tokens), size):
            steps.append(tokens[batch])
            turn[batch] += 1
    return np.stack(steps[:n_steps])
