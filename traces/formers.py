"""Batch formers: which of the requests that wait go through the model together.

A device's `pool` times `size` requests wait; what each will route to is known, or predicted. Formers see the routes of
every request's next token and say who is in which batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from traces.batches import Batches
from traces.routing import RoutingTrace

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


def formed_batches(waiting: Batches, size: int, forming: Forming, rng: np.random.Generator) -> Batches:
    """Batches of `size` requests a device, formed of the `waiting` ones, whose steps are turns of every request."""
    n_turns, n_devices, _ = waiting.tokens.shape
    tokens, contexts = (np.empty((n_turns, n_devices, size), np.int64) for _ in range(2))
    for device in range(n_devices):
        own = waiting.tokens[:, device]
        chosen = formed(own, lambda now: _predicted(waiting.trace, now, forming.recall, rng), size, forming.by)
        tokens[:, device], contexts[:, device] = own[chosen], waiting.contexts[:, device][chosen]
    predicted = "" if forming.recall == 1 else f", {forming.recall:.0%} of routes predicted"
    return replace(
        waiting,
        tokens=tokens,
        contexts=contexts,
        passes=waiting.passes / forming.pool,
        discipline=f"{waiting.discipline}; by {forming.by} of {forming.pool} batches that wait{predicted}",
        exchanged=n_turns if forming.by == "expert-aware" else forming.pool,
    )


def formed(
    upcoming: NDArray[np.int64], routes_of: Callable[[NDArray[np.int64]], Routes], size: int, by: str
) -> tuple[Places, Places]:
    """(turn, request) of every place of as many batches as there are turns, int64[step, place] each.

    upcoming   int64[turn, request]: the tokens of every request that waits, in order.
    routes_of  the routes of some tokens, known or predicted.
    """
    n_steps, n_requests = upcoming.shape
    turn, request = np.zeros(n_requests, np.int64), np.arange(n_requests)
    turns: list[Places] = []
    requests: list[Places] = []
    while len(turns) < n_steps:
        for batch in FORMERS[by](routes_of(upcoming[turn, request]), size):
            turns.append(turn[batch])
            requests.append(batch)
            turn[batch] += 1
    return np.stack(turns[:n_steps]), np.stack(requests[:n_steps])


def _predicted(trace: RoutingTrace, tokens: NDArray[np.int64], recall: float, rng: np.random.Generator) -> Routes:
    """Routes of some tokens, of which each choice is known with chance `recall`, and else any."""
    n_experts = trace.n_experts
    ids = np.minimum(trace.ids[:, :, tokens].astype(np.int64), n_experts)  # unused: the largest id
    wrong = (rng.random(ids.shape) >= recall) & (ids < n_experts)
    named = np.where(wrong, rng.integers(n_experts, size=ids.shape), ids)
    routes = np.zeros((len(tokens), trace.n_layers, n_experts + 1), bool)
    np.put_along_axis(routes, np.moveaxis(named, 2, 0), True, axis=2)
    return routes[..., :n_experts].reshape(len(tokens), -1)
