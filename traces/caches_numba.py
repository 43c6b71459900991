"""The compiled twin of the replay in `traces.caches`: the same hits and the same experts that stay (extra `speed`)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def retain(
    shape: tuple[int, int], capacity: int, accesses: tuple[Ints, Ints, Ints], forced: bool
) -> tuple[Flags, int, int]:
    """As `traces.caches._retain`, for caches of `shape` (layers, experts)."""
    pool, offsets, priority = accesses
    hit = np.empty(len(pool), np.bool_)
    above = int(priority.max()) + 1 if forced else 0
    inserted, left = _retain(shape[0], shape[1], capacity, pool, offsets, priority, above, hit)
    return hit, inserted, left


@njit(cache=True, nogil=True)
def _retain(n_layers, n_experts, capacity, pool, offsets, priority, above, hit):  # type: ignore[no-untyped-def]
    # What is there of a layer stands in its first places, in any order: the expert, and its priority.
    expert_at = np.empty((n_layers, n_experts), np.int64)
    priority_at = np.empty((n_layers, n_experts), np.int64)
    place_of = np.full(n_layers * n_experts, -1, np.int64)
    n_held = np.zeros(n_layers, np.int64)
    inserted = 0
    for event in range(len(offsets) - 1):
        start, end = offsets[event], offsets[event + 1]
        while start < end:
            layer = pool[start] // n_experts
            first_of_next, n_here = (layer + 1) * n_experts, n_held[layer]
            experts, priorities = expert_at[layer], priority_at[layer]
            stop = start
            while stop < end and pool[stop] < first_of_next:
                place = place_of[pool[stop]]
                hit[stop] = place >= 0
                if place < 0:
                    place = n_here
                    place_of[pool[stop]] = place
                    experts[place] = pool[stop]
                    n_here += 1
                    priorities[place] = priority[stop] + above
                else:
                    priorities[place] = priority[stop]
                stop += 1
            while n_here > capacity:
                lowest = _lowest(priorities, n_here)
                n_here -= 1
                place_of[experts[lowest]] = -1
                if lowest < n_here:
                    experts[lowest], priorities[lowest] = experts[n_here], priorities[n_here]
                    place_of[experts[lowest]] = lowest
            n_held[layer] = n_here
            for access in range(start, stop):
                place = place_of[pool[access]]
                if place >= 0 and not hit[access]:
                    priorities[place] = priority[access]
                    inserted += 1
            start = stop
    return inserted, n_held.sum()


@njit(cache=True, nogil=True)
def _lowest(priorities, n):  # type: ignore[no-untyped-def]
    """Place of the lowest of the first n; the lowest first, without branches, then its place."""
    lowest = priorities[0]
    for place in range(1, n):
        lowest = min(lowest, priorities[place])
    place = 0
    while priorities[place] != lowest:
        place += 1
    return place
