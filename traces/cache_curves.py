"""Hit rate of expert caches against their size, one token an event; caches never live across sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.caches import POLICIES, Ints, events_from_trace, replay_cache
from traces.routing import RoutingTrace

Convention = Literal["model_pool", "per_layer_cold"]

CONVENTIONS: dict[str, str] = {
    "model_pool": (
        "published convention (arXiv 2505.16056): one pool of experts for the whole model; hits are judged against the "
        "state at token start; every accessed expert is admitted in (layer, k) order; the n-th distinct expert touched "
        "counts as a hit where the pool holds n or more; a pool per sequence"
    ),
    "per_layer_cold": (
        "one cache per layer, empty at the start of each sequence, first touches are misses; event-atomic replay of "
        "one token at a time, admission by priority, among equals the lower id stays"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCurve:
    """Hits of one policy at several capacities.

    capacities  int64 [point], experts: of the whole model ("model_pool") or of each layer ("per_layer_cold").
    hits        int64 [point], over all layers and sequences.
    accesses    number of (token, layer, expert) accesses that the hits are a share of.
    """

    policy: str
    convention: Convention
    capacities: Ints
    hits: Ints
    accesses: int

    def __post_init__(self) -> None:
        self.capacities.setflags(write=False)
        self.hits.setflags(write=False)

    @property
    def hit_frac(self) -> NDArray[np.float64]:
        """Hits per access, float64 [point]."""
        return self.hits / self.accesses

    def at(self, capacity: int) -> float:
        """Hit fraction at one of the curve's capacities. Raises TraceError for any other."""
        found = np.flatnonzero(self.capacities == capacity)
        if len(found) == 0:
            known = f"{self.capacities.min()} to {self.capacities.max()} ({len(self.capacities)} points)"
            raise TraceError(f"the curve has no point at capacity {capacity}; it has {known}")
        return float(self.hit_frac[found[0]])


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceAccesses:
    """Accesses of one sequence in order of (token, layer, k): pool_ids = layer * n_experts + expert."""

    pool_ids: Ints
    offsets: Ints

    @property
    def token(self) -> Ints:
        """Token of each access, counted from the start of the sequence."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def pool_capacity(trace: RoutingTrace, rho: float) -> int:
    """Places of a whole-model pool rho times as large as the experts of one token: rho * k * layers, rounded."""
    return round(rho * trace.top_k * trace.n_layers)


def sequence_accesses(trace: RoutingTrace, sequence: int) -> SequenceAccesses:
    """Accesses of one sequence; padding of a variable k is left out."""
    ids = trace.ids[:, :, trace.offsets[sequence] : trace.offsets[sequence + 1]].transpose(2, 0, 1)
    pool = ids + np.arange(trace.n_layers, dtype=np.int64)[:, None] * trace.n_experts
    used = ids != trace.padding_id if trace.variable_k else np.ones(ids.shape, bool)
    sizes = used.sum(axis=(1, 2))
    return SequenceAccesses(pool_ids=pool[used], offsets=np.concatenate([[0], np.cumsum(sizes)]))


def lru_curve(trace: RoutingTrace, convention: Convention) -> CacheCurve:
    """LRU hits at every capacity, from one pass over the stack distances (Mattson et al. 1970)."""
    _check_convention(convention)
    pooled = convention == "model_pool"
    n_groups, width = (1, trace.n_layers * trace.n_experts) if pooled else (trace.n_layers, trace.n_experts)
    histogram = np.zeros(width + 1, np.int64)
    for sequence in range(trace.n_sequences):
        accesses = sequence_accesses(trace, sequence)
        recency = np.arange(len(accesses.pool_ids))
        if not pooled:
            recency = accesses.token * width + width - 1 - accesses.pool_ids % width
        distance = _stack_distances(accesses, recency, n_groups, width)
        firsts = np.sort(np.unique(accesses.pool_ids, return_index=True)[1])
        distance[firsts] = np.arange(len(firsts)) if pooled else width
        histogram += np.bincount(distance, minlength=width + 1)
    return CacheCurve(
        policy="lru",
        convention=convention,
        capacities=np.arange(1, width + 1),
        hits=np.cumsum(histogram[:width]),
        accesses=int(histogram.sum()),
    )


def _stack_distances(accesses: SequenceAccesses, recency: Ints, n_groups: int, width: int) -> Ints:
    """Experts of the same group that are more recent at token start, int64 [access]; meaningless on a first touch.

    `recency` grows with time. A group's keys lie in a range of their own, so one sorted row serves all groups.
    """
    group_span = int(recency.max(initial=0)) + 2
    base = np.repeat(np.arange(n_groups) * group_span, width)
    keys = base.copy()
    fresh = base[accesses.pool_ids] + recency + 1
    distance = np.empty(len(recency), np.int64)
    bounds = accesses.offsets.tolist()
    for start, end in pairwise(bounds):
        entries = accesses.pool_ids[start:end]
        ranked = np.sort(keys.reshape(n_groups, width), axis=1).reshape(-1)
        distance[start:end] = np.searchsorted(ranked, keys[entries], side="right")
        keys[entries] = fresh[start:end]
    return (accesses.pool_ids // width + 1) * width - distance


def cache_curve(trace: RoutingTrace, policy: str, convention: Convention, capacities: Sequence[int]) -> CacheCurve:
    """Hits of "lru", "lfu" or "belady" at the given capacities; see CONVENTIONS for what each convention counts.

    Raises TraceError for unknown names and for capacities below 1 or above the experts there are.
    """
    _check_convention(convention)
    if policy not in POLICIES:
        raise TraceError(f"unknown cache policy {policy!r}; known: {', '.join(POLICIES)}")
    largest = trace.n_experts * (trace.n_layers if convention == "model_pool" else 1)
    check_capacities(capacities, largest)
    points = np.array(capacities, np.int64)
    if policy == "lru":
        whole = lru_curve(trace, convention)
        hits, n_accesses = whole.hits[points - 1], whole.accesses
    elif convention == "model_pool":
        hits, n_accesses = _pool_curve(trace, policy, capacities)
    else:
        hits, n_accesses = _layer_curve(trace, policy, capacities)
    return CacheCurve(policy=policy, convention=convention, capacities=points, hits=hits, accesses=n_accesses)


def check_capacities(capacities: Sequence[int], largest: int) -> None:
    """Raise TraceError where a capacity is below 1 or above `largest`, or where there is none."""
    wrong = [capacity for capacity in capacities if not 1 <= capacity <= largest]
    if wrong or len(capacities) == 0:
        raise TraceError(f"capacities must lie from 1 to {largest} experts, got {wrong or 'none'}")


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise TraceError(f"unknown cache convention {convention!r}; known: {', '.join(CONVENTIONS)}")


def _layer_curve(trace: RoutingTrace, policy: str, capacities: Sequence[int]) -> tuple[Ints, int]:
    hits, n_accesses = np.zeros(len(capacities), np.int64), 0
    for start, end in pairwise(trace.offsets):
        events = events_from_trace(trace, list(np.arange(start, end)[:, None]))
        hits += [replay_cache(events, capacity, policy).hits for capacity in capacities]
        n_accesses += len(events.pool_ids)
    return hits, n_accesses


def _pool_curve(trace: RoutingTrace, policy: str, capacities: Sequence[int]) -> tuple[Ints, int]:
    hits, n_accesses = np.zeros(len(capacities), np.int64), 0
    for sequence in range(trace.n_sequences):
        accesses = sequence_accesses(trace, sequence)
        n = len(accesses.pool_ids)
        priority = POLICIES[policy](accesses.pool_ids, np.arange(n), n)
        hits += [pool_hits(accesses, priority, capacity) for capacity in capacities]
        n_accesses += n
    return hits, n_accesses


def pool_hits(accesses: SequenceAccesses, priority: Ints, capacity: int, window_tokens: int = 0) -> int:
    """Hits of one sequence in a pool of `capacity` experts under the "model_pool" convention.

    priority       int64 [access]: of the accessed expert from this access on; the lowest leaves.
    window_tokens  if given, when the window of so many tokens moves on to a later token, residents which that token
                   accesses rise by the number of accesses of the sequence.
    """
    resident: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    seen: set[int] = set()
    tokens = list(_by_token(accesses, accesses.pool_ids))
    hits = 0
    for i, (entries, fresh) in enumerate(zip(tokens, _by_token(accesses, priority), strict=True)):
        hits += sum(entry in resident for entry in entries)
        hits += min(len(set(entries) - seen), max(0, capacity - len(seen)))
        seen.update(entries)
        for entry, value in zip(entries, fresh, strict=True):
            if entry not in resident and len(resident) == capacity:
                _evict_lowest(resident, heap)
            resident[entry] = value
            heappush(heap, (value, entry))
        if window_tokens and i + window_tokens < len(tokens):
            for entry in resident.keys() & set(tokens[i + window_tokens]):
                resident[entry] += len(priority)
                heappush(heap, (resident[entry], entry))
    return hits


def _by_token(accesses: SequenceAccesses, values: Ints) -> Iterator[list[int]]:
    bounds = accesses.offsets.tolist()
    return (values[start:end].tolist() for start, end in pairwise(bounds))


def _evict_lowest(resident: dict[int, int], heap: list[tuple[int, int]]) -> None:
    """Remove the resident of lowest priority; heap items that no longer state a resident's priority are stale."""
    while True:
        value, entry = heappop(heap)
        if resident.get(entry) == value:
            del resident[entry]
            return
