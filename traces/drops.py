"""Capacity of experts: which choices of a group of tokens are dropped where an expert is full."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from scenarios.routing_specs import DropOrder
from traces.batches import Batches
from traces.routes import Kept, keep_places, used_places, weights_of
from traces.routing import Ids, RoutingTrace

OCTILES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Tokens that an expert takes of a group: `factor` x k x tokens / experts, rounded up, and at least `least`.

    GShard (arXiv 2006.16668, section 2.2). `order` says which choices stay; see `kept_choices`.
    """

    factor: float
    order: DropOrder
    least: int = 0

    def of(self, n_tokens: int, top_k: int, n_experts: int) -> int:
        """Capacity of an expert for a group of `n_tokens`."""
        return max(self.least, math.ceil(self.factor * top_k * n_tokens / n_experts - 1e-9))


def capped_sequences(trace: RoutingTrace, rule: Capacity, rng: np.random.Generator) -> RoutingTrace:
    """The trace with every request's own capacity, which its later tokens find used up (OpenMoE, arXiv 2402.01739)."""
    return _capped(trace, np.diff(trace.offsets), rule, rng)


def capped_steps(batches: Batches, *, by_device: bool, rule: Capacity, rng: np.random.Generator) -> Batches:
    """The steps with routes of their own, after each device, or each step, has filled its capacity.

    Tokens of a group come in the order of devices and places in the batch.
    """
    n_steps, n_devices, n_tokens = batches.tokens.shape
    size = n_tokens if by_device else n_devices * n_tokens
    routes = steps_as_trace(batches)
    capped = _capped(routes, np.full(routes.n_tokens // size, size), rule, rng)
    return replace(batches, trace=capped, tokens=np.arange(routes.n_tokens).reshape(n_steps, n_devices, n_tokens))


def steps_as_trace(batches: Batches) -> RoutingTrace:
    """The tokens of the steps one after the other, as a trace whose sequences are the devices' batches."""
    trace, tokens = batches.trace, batches.tokens.ravel()
    n_tokens = batches.tokens.shape[2]
    return replace(
        trace,
        ids=cast(Ids, np.take(trace.ids, tokens, axis=2)),
        weights=None if trace.weights is None else np.take(trace.weights, tokens, axis=2),
        positions=trace.positions[tokens],
        offsets=np.arange(0, len(tokens) + 1, n_tokens),
        labels=(),
        check_ids=False,
    )


def kept_choices(
    experts: NDArray[np.integer],
    group: NDArray[np.int64],
    room: NDArray[np.int64],
    order: DropOrder,
    *,
    weights: NDArray[np.float32] | None,
    rng: np.random.Generator,
) -> Kept:
    """Which choices experts [k, token] find room, bool[k, token]; ids from `len(room[0])` on are unused places.

    group  int64[token]; room  int64[group, expert].
    position  first choices of all tokens in their order, then second ones (GShard, algorithm 1)
    weight    the largest gate weights of an expert: of first choices the batch-prioritised routing of V-MoE (arXiv
              2106.05974, section 4), of all the policy `probs` of Megatron-Core
    random    random ones (Z-code M3, arXiv 2109.10465)
    """
    used = experts < room.shape[1]
    cell = (group * room.shape[1] + experts)[used]
    if order == "weight" and weights is not None:
        turn = np.argsort(-weights[used], kind="stable")
    else:
        turn = rng.permutation(len(cell)) if order == "random" else np.arange(len(cell))
    turn = turn[np.argsort(cell[turn], kind="stable")]
    ordered = cell[turn]
    begin = np.searchsorted(ordered, ordered, side="left")
    fits = np.empty(len(cell), bool)
    fits[turn] = np.arange(len(cell)) - begin < room.ravel()[ordered]
    kept = np.zeros(experts.shape, bool)
    kept[used] = fits
    return kept


def _capped(trace: RoutingTrace, sizes: NDArray[np.int64], rule: Capacity, rng: np.random.Generator) -> RoutingTrace:
    """The trace with a capacity of its own for every run of `sizes` tokens."""
    weights = weights_of(trace, "drop: weight") if rule.order == "weight" else None
    group = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    capacity = [rule.of(int(size), trace.top_k, trace.n_experts) for size in sizes]
    room = np.repeat(np.array(capacity, np.int64)[:, None], trace.n_experts, axis=1)
    kept = np.empty(trace.ids.shape, bool)
    for layer, rows in enumerate(trace.ids):
        own = None if weights is None else weights[layer]
        kept[layer] = kept_choices(rows, group, room, rule.order, weights=own, rng=rng)
    return keep_places(trace, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteShares:
    """What became of the choices of the steps, in the mean of MoE layers.

    experts_per_token  choices that a token keeps.
    dropped_frac       share of choices that found their expert full.
    octiles            the same by eighths of a request, float64[8].
    """

    experts_per_token: float
    dropped_frac: float
    octiles: NDArray[np.float64]


def route_shares(chosen: Batches, kept: Batches) -> RouteShares:
    """Shares of the steps `chosen`, whose routes after drops are those of `kept`."""
    trace, tokens = chosen.trace, chosen.tokens.ravel()
    sequence = np.searchsorted(trace.offsets, tokens, side="right") - 1
    octile = (tokens - trace.offsets[sequence]) * OCTILES // np.diff(trace.offsets)[sequence]
    before, after = (np.count_nonzero(used_places(b.trace), axis=(0, 1))[b.tokens.ravel()] for b in (chosen, kept))
    wanted, got = (np.bincount(octile, weights=counts, minlength=OCTILES) for counts in (before, after))
    return RouteShares(
        experts_per_token=float(after.mean() / trace.n_layers),
        dropped_frac=float(1 - got.sum() / max(wanted.sum(), 1)),
        octiles=np.divide(wanted - got, wanted, out=np.zeros(OCTILES), where=wanted > 0),
    )
