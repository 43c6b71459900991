"""Placement by trying everything, in plain loops: what exact solvers and bounds are held against on tiny cases."""

from collections.abc import Iterator
from itertools import combinations, permutations, product

import numpy as np


def equal_splits(n_experts: int, n_ranks: int) -> Iterator[list[int]]:
    """Every way to put experts on ranks in equal numbers, up to renaming ranks: the rank of each expert."""
    room = n_experts // n_ranks

    def fill(ranks: dict[int, int], rank: int) -> Iterator[list[int]]:
        free = [e for e in range(n_experts) if e not in ranks]
        if not free:
            yield [ranks[e] for e in range(n_experts)]
            return
        for others in combinations(free[1:], room - 1):
            yield from fill({**ranks, free[0]: rank, **dict.fromkeys(others, rank)}, rank + 1)

    return fill({}, 0)


def named_splits(n_experts: int, n_ranks: int) -> list[list[int]]:
    """The same with all namings of ranks."""
    return [
        [names[r] for r in split]
        for split in equal_splits(n_experts, n_ranks)
        for names in permutations(range(n_ranks))
    ]


def most_that_stay(transitions: np.ndarray, n_ranks: int) -> float:
    """Largest number of tokens that stay on their rank, over all placements of all layers."""
    n_experts = transitions.shape[1]
    first, later = list(equal_splits(n_experts, n_ranks)), named_splits(n_experts, n_ranks)
    best = 0.0
    for plan in product(first, *[later] * len(transitions)):
        stay = 0.0
        for counts, here, there in zip(transitions, plan[:-1], plan[1:], strict=True):
            stay += sum(counts[e, f] for e in range(n_experts) for f in range(n_experts) if here[e] == there[f])
        best = max(best, stay)
    return best


def fewest_visits(experts: np.ndarray, n_experts: int, n_parts: int) -> float:
    """Smallest mean number of distinct parts per token, over all placements without replicas."""
    return min(
        sum(len({parts[e] for e in token}) for token in experts.tolist()) / len(experts)
        for parts in equal_splits(n_experts, n_parts)
    )


def fewest_visits_with_replicas(experts: np.ndarray, n_experts: int, n_parts: int, room: int) -> float:
    """The same where parts hold `room` experts each, experts may have replicas, and each token chooses best."""
    best = float("inf")
    for held in product(combinations(range(n_experts), room), repeat=n_parts):
        if list(held) != sorted(held) or set().union(*held) != set(range(n_experts)):
            continue
        visits = 0
        for token in experts.tolist():
            sizes = range(1, n_parts + 1)
            visits += next(n for n in sizes for p in combinations(held, n) if set(token) <= set().union(*p))
        best = min(best, visits / len(experts))
    return best


def least_busiest(loads: np.ndarray, n_slots: int, n_ranks: int) -> float:
    """Smallest mean load of the busiest rank over all ways to fill the slots, copies sharing evenly."""
    n_experts, room = loads.shape[1], n_slots // n_ranks
    best = float("inf")
    contents = list(combinations_with_repetition(n_experts, room))
    for ranks in product(contents, repeat=n_ranks):
        if list(ranks) != sorted(ranks):
            continue
        held = [e for rank in ranks for e in rank]
        if set(held) != set(range(n_experts)):
            continue
        peaks = [max(sum(tokens[e] / held.count(e) for e in rank) for rank in ranks) for tokens in loads.tolist()]
        best = min(best, sum(peaks) / len(peaks))
    return best


def combinations_with_repetition(n: int, size: int) -> Iterator[tuple[int, ...]]:
    """Ascending tuples of `size` numbers below n."""
    return (c for c in product(range(n), repeat=size) if list(c) == sorted(c))
