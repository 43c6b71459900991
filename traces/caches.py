"""Replay of expert caches: one cache per layer, and an event is the set of experts that a step asks of a layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.routing import RoutingTrace

Ints = NDArray[np.int64]
Contract = Literal["event_atomic", "per_access"]
Admission = Literal["bypass", "forced"]

CONTRACTS: dict[str, str] = {
    "event_atomic": "classify the whole event against the cache at its start, serve all misses, then admit and evict",
    "per_access": "classify, admit and evict one expert after the other, in ascending order of expert id",
}
_MASK_CELLS = 1 << 24  # bytes of the largest intermediate mask


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEvents:
    """Experts that each step asks of each layer, after de-duplication inside the (step, layer) event.

    pool_ids  int64 [access]: layer * n_experts + expert, ascending inside a step.
    offsets   int64 [step + 1]: step s holds accesses offsets[s]:offsets[s+1].
    tokens    int64 [step]: tokens of the batch.
    logical   int64 [step]: assignments before de-duplication.
    """

    pool_ids: Ints
    offsets: Ints
    tokens: Ints
    logical: Ints
    n_layers: int
    n_experts: int

    def __post_init__(self) -> None:
        for array in (self.pool_ids, self.offsets, self.tokens, self.logical):
            array.setflags(write=False)

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return len(self.offsets) - 1

    @property
    def step(self) -> Ints:
        """Step of each access, int64 [access]."""
        return np.repeat(np.arange(self.n_steps), np.diff(self.offsets))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReplay:
    """What one replay did. All counts are experts; a transfer is an expert fetched, and every miss is fetched.

    An insertion is an expert that stays in the cache after the event that fetched it. `event_accesses` and
    `event_misses` are int64 [step, layer]. `logical` counts assignments before de-duplication, which no policy is
    credited with. The cache starts empty and lives across all steps; capacity is per layer.
    """

    policy: str
    contract: Contract
    admission: Admission
    tie_rule: str
    capacity: int
    accesses: int
    logical: int
    tokens: int
    hits: int
    misses: int
    compulsory: int
    insertions: int
    evictions: int
    event_accesses: Ints
    event_misses: Ints

    @property
    def capacity_misses(self) -> int:
        """Misses of experts that the layer had fetched before."""
        return self.misses - self.compulsory

    @property
    def transfers(self) -> int:
        """Experts fetched."""
        return self.misses

    @property
    def hit_frac(self) -> float:
        """Hits per access (after de-duplication inside an event)."""
        return self.hits / self.accesses

    @property
    def effective_miss_frac(self) -> float:
        """Transfers per logical assignment (before de-duplication)."""
        return self.transfers / self.logical

    @property
    def transfers_per_token(self) -> float:
        """Experts fetched per token, all layers together."""
        return self.transfers / self.tokens

    def step_miss_quantile(self, q: float) -> int:
        """Misses of a step over all layers, q-quantile over steps, rounded up to a value that occurred."""
        return int(np.quantile(self.event_misses.sum(axis=1), q, method="higher"))

    def event_miss_quantile(self, q: float) -> int:
        """Misses of a (step, layer) event, q-quantile over events, rounded up to a value that occurred."""
        return int(np.quantile(self.event_misses[self.event_accesses > 0], q, method="higher"))

    def regime_quantile(self, q: float) -> float:
        """Distinct experts of an event per place of the cache, q-quantile over events; above 1 it cannot hold them."""
        return float(np.quantile(self.event_accesses[self.event_accesses > 0] / self.capacity, q, method="higher"))


def events_from_sets(requests: Sequence[Sequence[Collection[int]]], n_experts: int) -> CacheEvents:
    """Events of explicit sets: requests[step][layer] holds expert ids; a step counts as one token.

    Raises TraceError where steps differ in their number of layers or an id is out of range.
    """
    n_layers = len(requests[0]) if requests else 0
    if n_layers == 0 or any(len(step) != n_layers for step in requests):
        raise TraceError(f"every step needs requests for the same layers, got {[len(step) for step in requests]}")
    pools: list[list[int]] = []
    for s, step in enumerate(requests):
        wrong = [expert for layer in step for expert in layer if not 0 <= expert < n_experts]
        if wrong:
            raise TraceError(f"step {s}: expert {wrong[0]} is out of range for {n_experts} experts")
        pools.append(sorted({layer * n_experts + expert for layer, experts in enumerate(step) for expert in experts}))
    sizes = np.array([len(pool) for pool in pools], np.int64)
    return CacheEvents(
        pool_ids=np.array([entry for pool in pools for entry in pool], np.int64),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        tokens=np.ones(len(pools), np.int64),
        logical=sizes,
        n_layers=n_layers,
        n_experts=n_experts,
    )


def events_from_trace(
    trace: RoutingTrace, batches: Sequence[NDArray[np.integer[Any]]] | NDArray[np.integer[Any]]
) -> CacheEvents:
    """Events of batched steps: batches[step] holds the indices of the trace's tokens that the step processes.

    Raises TraceError where a batch is empty or names a token that the trace lacks.
    """
    tokens = np.array([len(batch) for batch in batches], np.int64)
    if len(batches) == 0 or (tokens == 0).any():
        raise TraceError(f"step {int(np.argmin(tokens)) if len(batches) else 0} of the batches has no tokens")
    width = trace.n_layers * trace.n_experts
    block = max(1, _MASK_CELLS // max(width, int(tokens.max()) * trace.n_layers * trace.top_k * 8))
    pools, sizes, logical = [], [], []
    for start in range(0, len(batches), block):
        members = batches[start : start + block]
        requested, assigned = _requested(trace, np.concatenate(members), tokens[start : start + block])
        pools.append(np.nonzero(requested)[1])
        sizes.append(requested.sum(axis=1))
        logical.append(assigned)
    return CacheEvents(
        pool_ids=np.concatenate(pools),
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(sizes))]),
        tokens=tokens,
        logical=np.concatenate(logical),
        n_layers=trace.n_layers,
        n_experts=trace.n_experts,
    )


def _requested(trace: RoutingTrace, token: NDArray[Any], sizes: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Experts asked for, bool [step, layer * n_experts + expert], and assignments, int64 [step]."""
    if token.ndim != 1 or token.dtype.kind not in "iu":
        raise TraceError(f"a batch must be one row of integers, got {token.dtype} with {token.ndim} axes")
    if int(token.min()) < 0 or int(token.max()) >= trace.n_tokens:
        raise TraceError(f"batches name tokens {token.min()} to {token.max()}, the trace has 0 to {trace.n_tokens - 1}")
    ids = trace.ids[:, :, token]
    pool = ids + np.arange(trace.n_layers)[:, None, None] * trace.n_experts
    step = np.broadcast_to(np.repeat(np.arange(len(sizes)), sizes), pool.shape)
    used = ids != trace.padding_id if trace.variable_k else np.ones(ids.shape, bool)
    requested = np.zeros((len(sizes), trace.n_layers * trace.n_experts), bool)
    requested[step[used], pool[used]] = True
    return requested, np.bincount(step[used], minlength=len(sizes))


# A policy returns the priority of every accessed expert after the access, int64 [access] >= 0; the lowest leave
# first. Between two accesses of an expert its priority stands still.
Policy = Callable[[Ints, Ints, int], Ints]


def least_recent(_pool_ids: Ints, step: Ints, _n_steps: int) -> Ints:
    """Priority of LRU: the step of the last access."""
    return step


def least_frequent(pool_ids: Ints, step: Ints, n_steps: int) -> Ints:
    """Priority of LFU: accesses so far, those before an eviction included; then the step of the last one."""
    order, first = _runs(pool_ids)
    place = np.arange(len(order))
    count = np.empty_like(place)
    count[order] = place - np.maximum.accumulate(np.where(first, place, 0)) + 1
    return count * n_steps + step


def belady(pool_ids: Ints, step: Ints, n_steps: int) -> Ints:
    """Priority of Belady's optimum: the sooner the next access the higher; 0 without one."""
    order, first = _runs(pool_ids)
    following = np.full(len(order), n_steps, np.int64)
    following[order[:-1]] = np.where(first[1:], n_steps, step[order[1:]])
    return n_steps - following


POLICIES: dict[str, Policy] = {"lru": least_recent, "lfu": least_frequent, "belady": belady}


def _runs(pool_ids: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Accesses sorted by expert, then time; and which of them are the first of their expert."""
    order = np.argsort(pool_ids, kind="stable")
    first = np.ones(len(order), bool)
    first[1:] = np.diff(pool_ids[order]) != 0
    return order, first


def replay_cache(
    events: CacheEvents,
    capacity: int,
    policy: str = "lru",
    contract: Contract = "event_atomic",
    admission: Admission = "bypass",
    tie_rng: np.random.Generator | None = None,
) -> CacheReplay:
    """What a cache of `capacity` experts per layer does with `events`, from an empty cache on.

    policy     "lru", "lfu" or "belady" (see POLICIES).
    contract   "event_atomic" (the default) or "per_access", see CONTRACTS.
    admission  "bypass": of the residents and the fetched, those of highest priority stay; a fetched expert may not.
               "forced": the fetched stay, residents of lowest priority leave. No difference for LRU while the
               capacity holds an event. Per-access LFU and LFRU of the literature are forced, their atomic twins bypass.
    tie_rng    equal priorities are decided by a random order of the experts; without it the lower id stays.

    Semantics: moe-cache-eval (arXiv 2608.07911). Raises TraceError for unknown names and impossible capacities.
    """
    _check_request(events, capacity, policy, contract, admission)
    atomic = contract == "event_atomic"
    order = slice(None) if atomic else _one_by_one(events)
    pool = events.pool_ids[order]
    offsets = events.offsets if atomic else _single_offsets(events)
    step = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    priority = POLICIES[policy](pool, step, len(offsets) - 1) * events.n_experts + _tie_rank(events, tie_rng)[pool]
    hit, insertions, n_left = _retain(events, capacity, (pool, offsets, priority), admission == "forced")
    event = events.step[order] * events.n_layers + pool // events.n_experts
    shape, hits = (events.n_steps, events.n_layers), int(np.count_nonzero(hit))
    return CacheReplay(
        policy=policy,
        contract=contract,
        admission=admission,
        tie_rule="lower id stays" if tie_rng is None else "random order of the experts",
        capacity=capacity,
        accesses=len(pool),
        logical=int(events.logical.sum()),
        tokens=int(events.tokens.sum()),
        hits=hits,
        misses=len(pool) - hits,
        compulsory=int((np.bincount(pool) > 0).sum()),
        insertions=insertions,
        evictions=insertions - n_left,
        event_accesses=np.bincount(event, minlength=shape[0] * shape[1]).reshape(shape),
        event_misses=np.bincount(event[~hit], minlength=shape[0] * shape[1]).reshape(shape),
    )


def _check_request(events: CacheEvents, capacity: int, policy: str, contract: str, admission: str) -> None:
    if policy not in POLICIES:
        raise TraceError(f"unknown cache policy {policy!r}; known: {', '.join(POLICIES)}")
    if contract not in CONTRACTS:
        raise TraceError(f"unknown replay contract {contract!r}; known: {', '.join(CONTRACTS)}")
    if admission not in ("bypass", "forced"):
        raise TraceError(f"unknown admission {admission!r}; known: bypass, forced")
    if not 1 <= capacity <= events.n_experts:
        raise TraceError(f"a cache of {capacity} experts per layer is impossible; choose 1 to {events.n_experts}")
    if len(events.pool_ids) == 0:
        raise TraceError("the events ask for no expert at all, so there is nothing to replay")


def _tie_rank(events: CacheEvents, rng: np.random.Generator | None) -> Ints:
    """Rank of each pool id among equals of its layer, 0 to n_experts - 1; the highest stays."""
    ranks = np.tile(np.arange(events.n_experts)[::-1], (events.n_layers, 1))
    return (ranks if rng is None else rng.permuted(ranks, axis=1)).ravel()


def _place_in_layer(events: CacheEvents) -> tuple[Ints, Ints]:
    """Layer of each access, and its place among the accesses of that layer."""
    layer = events.pool_ids // events.n_experts
    by_layer = np.argsort(layer, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(layer, minlength=events.n_layers))])
    place = np.empty_like(layer)
    place[by_layer] = np.arange(len(layer)) - starts[layer[by_layer]]
    return layer, place


def _one_by_one(events: CacheEvents) -> Ints:
    """Order of the accesses in which turn i holds the i-th access of every layer: layers do not see each other."""
    layer, place = _place_in_layer(events)
    return np.lexsort((layer, place))


def _single_offsets(events: CacheEvents) -> Ints:
    _, place = _place_in_layer(events)
    return np.concatenate([[0], np.cumsum(np.bincount(place))])


def _retain(
    events: CacheEvents, capacity: int, accesses: tuple[Ints, Ints, Ints], forced: bool
) -> tuple[NDArray[np.bool_], int, int]:
    """Per access whether it hit; how many missed experts stayed after their event, and how many are there at the end.

    All layers advance together: the `capacity` highest priorities of each row stay, -1 marks an absent expert. The
    environment variable MOESIM_SPEED=numba selects a compiled twin with the same integers (extra `speed`).
    """
    pool, offsets, priority = accesses
    if os.environ.get("MOESIM_SPEED") == "numba":
        from traces.caches_numba import retain

        return retain((events.n_layers, events.n_experts), capacity, accesses, forced)
    table = np.full((events.n_layers, events.n_experts), -1, np.int64)
    flat = table.reshape(-1)
    hit, kept = np.empty(len(pool), bool), np.empty(len(pool), bool)
    above = int(priority.max()) + 1
    bounds = offsets.tolist()
    for start, end in pairwise(bounds):
        entries, fresh = pool[start:end], priority[start:end]
        resident = hit[start:end] = flat[entries] >= 0
        flat[entries] = np.where(resident, fresh, fresh + above) if forced else fresh
        if capacity < events.n_experts:
            lowest = np.partition(table, events.n_experts - capacity, axis=1)[:, events.n_experts - capacity]
            np.putmask(table, table < lowest[:, None], -1)
        stays = kept[start:end] = flat[entries] >= 0
        if forced:
            flat[entries] = np.where(stays, fresh, -1)
    return hit, int((kept & ~hit).sum()), int((flat >= 0).sum())
