"""Transforms of routes: which of its choices a token keeps. A choice that is gone leaves an unused place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.routing import Ids, RoutingTrace, id_dtype
from traces.stats import expert_loads

Kept = NDArray[np.bool_]


def used_places(trace: RoutingTrace) -> Kept:
    """Whether a place holds an expert, bool[layer, k, token]."""
    return trace.ids < trace.n_experts


def keep_places(trace: RoutingTrace, kept: Kept) -> RoutingTrace:
    """The trace with unused places where `kept` bool[layer, k, token] is false; their gate weights are 0."""
    dtype = id_dtype(trace.n_experts, variable_k=True)
    kept = kept & used_places(trace)
    ids = np.where(kept, trace.ids, np.iinfo(dtype).max).astype(dtype)
    weights = None if trace.weights is None else np.where(kept, trace.weights, np.float16(0))
    return replace(trace, ids=cast(Ids, ids), weights=weights, variable_k=True, check_ids=False)


def in_weight_order(trace: RoutingTrace, purpose: str) -> RoutingTrace:
    """The trace with every token's choices in descending order of gate weight, unused places last.

    Raises TraceError where the trace has neither weights nor their order; `purpose` is what needs it.
    """
    if trace.weight_ordered:
        return trace
    order = np.argsort(-weights_of(trace, purpose), axis=1, kind="stable")
    weights = None if trace.weights is None else np.take_along_axis(trace.weights, order, axis=1)
    ids = cast(Ids, np.take_along_axis(trace.ids, order, axis=1))
    return replace(trace, ids=ids, weights=weights, weight_ordered=True, check_ids=False)


def weights_of(trace: RoutingTrace, purpose: str) -> NDArray[np.float32]:
    """Gate weights float32[layer, k, token], -1 at unused places. Raises TraceError where the trace has none."""
    if trace.weights is None:
        raise TraceError(
            f"workload.routing: {purpose} needs gate weights, and the trace ({trace.provenance.model}) has none; take "
            "a trace with weights, or make them up with workload.synthetic.gate_spread"
        )
    return np.where(used_places(trace), trace.weights, np.float32(-1)).astype(np.float32)


def best_choices(trace: RoutingTrace, n: int) -> RoutingTrace:
    """The trace with the `n` choices of the largest gate weights. Raises TraceError where a token has fewer places."""
    if n > trace.top_k:
        raise TraceError(f"workload.routing.top_k: {n} choices of a trace that has {trace.top_k} a token; give fewer")
    ordered = in_weight_order(trace, "top_k")
    weights = None if ordered.weights is None else ordered.weights[:, :n]
    return replace(ordered, ids=cast(Ids, np.ascontiguousarray(ordered.ids[:, :n])), weights=weights, check_ids=False)


def nucleus(trace: RoutingTrace, share: float) -> RoutingTrace:
    """Every token's best choices until their gate weights add up to `share`, at least one (arXiv 2403.07652, eq. 4).

    Weights count as they were recorded: probabilities of a softmax over all experts, or over the recorded k where the
    model renormalises. A token whose weights never reach the share keeps all of its recorded choices.
    """
    ordered = in_weight_order(trace, "top_p")
    weights = np.maximum(weights_of(ordered, "top_p"), 0)
    before = np.cumsum(weights, axis=1) - weights
    return keep_places(ordered, (before < share - 1e-3) | (np.arange(trace.top_k)[:, None] == 0))  # float16


def without_null(trace: RoutingTrace, n_null: int, rng: np.random.Generator | None = None) -> RoutingTrace:
    """The trace without the choices that go to `n_null` experts of no cost (AdaMoE, arXiv 2406.13233).

    AdaMoE's balance loss gives null experts, taken together, the share n_null / (n_experts + n_null) of all choices.
    Which ones a trace of a model without them cannot say: of each layer those of the least gate weight, which the
    router is least sure of; with `rng` each at random with that chance. A token may lose all of its choices.
    """
    share = n_null / (trace.n_experts + n_null)
    used = used_places(trace)
    if rng is not None:
        return keep_places(trace, used & (rng.random(used.shape) >= share))
    weights = weights_of(trace, "null_experts")
    kept = used.copy()
    for layer in range(trace.n_layers):
        order = np.argsort(np.where(used[layer], weights[layer], np.inf), axis=None, kind="stable")
        kept[layer].ravel()[order[: round(share * int(used[layer].sum()))]] = False
    return keep_places(trace, kept)


def iterated(trace: RoutingTrace, n: int) -> RoutingTrace:
    """The trace with `n` rows for each MoE layer: iteration i has choices i, i + n, ... of a token, so that all have
    strong and weak ones (Chain-of-Experts, arXiv 2506.18945). What its gates would choose anew is not recorded.

    Raises TraceError where the choices do not divide.
    """
    if n == 1:
        return trace
    if trace.top_k % n:
        raise TraceError(f"workload.routing.iterations: {trace.top_k} choices of a token do not divide into {n}")
    shape = (trace.n_layers, trace.top_k // n, n, trace.n_tokens)

    def rows(array: NDArray[Any]) -> NDArray[Any]:
        return array.reshape(shape).swapaxes(1, 2).reshape(trace.n_layers * n, trace.top_k // n, -1)

    weights = None if trace.weights is None else rows(trace.weights)
    layers = tuple(layer for layer in trace.moe_layers for _ in range(n))
    return replace(trace, ids=cast(Ids, rows(trace.ids)), weights=weights, moe_layers=layers, check_ids=False)


def joined(trace: RoutingTrace, n: int) -> RoutingTrace:
    """The trace with one row for each MoE layer again, from that of `iterated`."""
    if n == 1:
        return trace
    shape = (trace.n_layers // n, n, trace.top_k, trace.n_tokens)

    def rows(array: NDArray[Any]) -> NDArray[Any]:
        return array.reshape(shape).swapaxes(1, 2).reshape(shape[0], trace.top_k * n, -1)

    weights = None if trace.weights is None else rows(trace.weights)
    layers = trace.moe_layers[::n]
    return replace(trace, ids=cast(Ids, rows(trace.ids)), weights=weights, moe_layers=layers, check_ids=False)


def masked(trace: RoutingTrace, experts: Sequence[Sequence[int]], rng: np.random.Generator) -> RoutingTrace:
    """The trace with choices of `experts` [layer][i] alone: other choices are drawn anew among them.

    What a router would have chosen instead is not recorded, so that a choice of a masked expert goes to one of the
    kept ones with chances as their loads, never to one that the token has already. Order and gate weights of places
    stay. Raises TraceError where lists do not fit the trace or keep fewer experts than a token takes.
    """
    _check_mask(trace, experts)
    ids, loads = trace.ids.astype(np.int32), expert_loads(trace)
    for layer, kept in enumerate(experts):
        is_kept = np.zeros(trace.n_experts + 1, bool)
        is_kept[list(kept)] = is_kept[-1] = True
        _redraw(ids[layer], is_kept, np.maximum(loads[layer], 0.5) * is_kept[:-1], rng)
    return replace(trace, ids=cast(Ids, ids.astype(trace.ids.dtype)), check_ids=False)


def spaced(trace: RoutingTrace, counts: Sequence[int]) -> RoutingTrace:
    """The trace with expert e of a layer of `counts` experts as number e x (n_experts / count), for layers that differ.

    So experts in order spread over all ranks in every layer. Raises TraceError for an expert that its layer lacks.
    """
    ids = trace.ids.copy()
    for layer, count in enumerate(counts):
        used = ids[layer] < trace.n_experts
        if (ids[layer][used] >= count).any():
            raise TraceError(
                f"MoE layer {layer} has {count} experts, and the trace names number {int(ids[layer][used].max())}"
            )
        ids[layer] = np.where(used, ids[layer] * (trace.n_experts // count), ids[layer])
    return replace(trace, ids=ids, check_ids=False)


def highest(scores: NDArray[Any], n_kept: int) -> list[list[int]]:
    """The experts of the highest scores [layer, expert] in every layer, so many, ascending [layer][i]."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :n_kept]
    return [sorted(row) for row in order.tolist()]


def pruned(trace: RoutingTrace, experts: Sequence[Sequence[int]]) -> RoutingTrace:
    """The trace of a model that has `experts` [layer][i] alone, numbered in their order; all choices are among them.

    Raises TraceError where layers keep different numbers of them.
    """
    counts = {len(set(kept)) for kept in experts}
    if len(counts) > 1:
        raise TraceError(
            f"workload.routing.mask.prune: layers keep {min(counts)} to {max(counts)} experts; keep as many in each"
        )
    n_kept, ids = counts.pop(), np.empty_like(trace.ids)
    for layer, kept in enumerate(experts):
        number = np.full(int(np.iinfo(trace.ids.dtype).max) + 1, np.iinfo(trace.ids.dtype).max)
        number[sorted(set(kept))] = np.arange(n_kept)
        ids[layer] = number[trace.ids[layer]]
    return replace(trace, ids=ids, n_experts=n_kept, check_ids=False)


def _check_mask(trace: RoutingTrace, experts: Sequence[Sequence[int]]) -> None:
    if len(experts) != trace.n_layers:
        raise TraceError(f"workload.routing.mask: {len(experts)} lists of experts for {trace.n_layers} MoE layers")
    for layer, kept in enumerate(experts):
        if len(set(kept)) < trace.top_k or max(kept, default=0) >= trace.n_experts:
            raise TraceError(
                f"workload.routing.mask: MoE layer {layer} keeps {len(set(kept))} experts up to number "
                f"{max(kept, default=0)}, where a token takes {trace.top_k} of {trace.n_experts}; keep more, or lower "
                "ones"
            )


def _redraw(ids: NDArray[np.int32], is_kept: Kept, chances: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Draw the places [k, token] of masked experts anew, again where a token has the drawn expert already."""
    capped = np.minimum(ids, len(is_kept) - 1)
    place, token = np.nonzero(~is_kept[capped])
    steps = np.cumsum(chances) / chances.sum()
    ids[place, token] = -1
    while len(place):
        drawn = np.searchsorted(steps, rng.random(len(place)), side="right").astype(np.int32)
        fresh = ~(ids[:, token] == drawn).any(axis=0)
        fresh &= _first_of_token(token, fresh)
        ids[place[fresh], token[fresh]] = drawn[fresh]
        place, token = place[~fresh], token[~fresh]


def _first_of_token(token: NDArray[np.int64], candidate: Kept) -> Kept:
    """Of the candidates of each token the first one, so that two places of a token are never filled at once."""
    first = np.zeros(len(token), bool)
    chosen = np.flatnonzero(candidate)
    first[chosen[np.unique(token[chosen], return_index=True)[1]]] = True
    return first
