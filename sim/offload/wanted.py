"""What the steps of a setting ask of every layer's experts on every rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.moe_time import tokens_by_rank
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.offload_specs import GradesSpec
from sim.setting import Setting

Mask = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Experts by (MoE layer, rank, place); a place is one of the slots that the placement gives to the rank.

    tokens   int64[step, layer, rank, place]: tokens of every expert; placed: bool[layer, rank, place]: it exists.
    popular  float64[layer, rank, place]: tokens of the fitted part.
    scores   float64[step, layer, rank, place]: sums of gate weights, or None where nobody asked for them.
    expert   int64[layer, rank, place]: the logical expert, -1 where there is none.
    dear     bool[step, layer, rank, place]: used, and to be copied in high precision; None: all that are used.
    cheap    the same of experts that may be copied in low precision.
    n_pooled layers whose places share one row; a step is one of them.
    n_accesses  accesses that a step is divided into, of one expert of every row each.
    """

    tokens: NDArray[np.int64]
    placed: Mask
    popular: Scores
    expert: NDArray[np.int64]
    scores: Scores | None = None
    dear: Mask | None = None
    cheap: Mask | None = None
    n_pooled: int = 1
    n_accesses: int = 1

    @property
    def used(self) -> Mask:
        """bool[step, layer, rank, place]: whether the expert has a token."""
        return self.tokens > 0


def pooled(wanted: Wanted) -> Wanted:
    """The same uses of slots that all layers of a rank share: one row, whose steps are the layers of every step."""
    n_ranks = wanted.tokens.shape[2]
    return Wanted(
        tokens=in_pool(wanted.tokens),
        placed=np.moveaxis(wanted.placed, 0, 1).reshape(1, n_ranks, -1),
        popular=np.moveaxis(wanted.popular, 0, 1).reshape(1, n_ranks, -1),
        expert=np.moveaxis(wanted.expert, 0, 1).reshape(1, n_ranks, -1),
        dear=None if wanted.dear is None else in_pool(wanted.dear),
        cheap=None if wanted.cheap is None else in_pool(wanted.cheap),
        n_pooled=len(wanted.expert),
    )


def in_pool(by_layer: NDArray[Any]) -> NDArray[Any]:
    """[step, layer, rank, place] as [step and layer, 1, rank, layer and place]: of other layers nothing is asked."""
    n_steps, n_layers, n_ranks, n_places = by_layer.shape
    spread = np.zeros((n_steps, n_layers, n_ranks, n_layers, n_places), by_layer.dtype)
    for layer in range(n_layers):
        spread[:, layer, :, layer] = by_layer[:, layer]
    return spread.reshape(n_steps * n_layers, 1, n_ranks, -1)


def out_of_pool(spread: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """What `in_pool` spread, in its own `shape`."""
    n_steps, n_layers, n_ranks, n_places = shape
    blocks = spread.reshape(n_steps, n_layers, n_ranks, n_layers, n_places)
    return np.stack([blocks[:, layer, :, layer] for layer in range(n_layers)], axis=1)


def one_by_one(wanted: Wanted) -> Wanted:
    """The same uses one after another in ascending order of places; a step has as many accesses as the busiest row."""
    used = wanted.used
    number = np.cumsum(used, axis=-1) - 1
    n_accesses = max(int(number.max()) + 1, 1)
    turn = np.arange(n_accesses)[:, None, None, None]
    tokens = np.where(used[:, None] & (number[:, None] == turn), wanted.tokens[:, None], 0)
    return replace(wanted, tokens=tokens.reshape(-1, *wanted.tokens.shape[1:]), n_accesses=n_accesses)


def before_accesses(asked: Mask, n_accesses: int) -> Mask:
    """What is asked for before a step's first access: bool[step and access, ...]."""
    ahead = np.zeros((len(asked), n_accesses, *asked.shape[1:]), bool)
    ahead[:, 0] = asked
    return ahead.reshape(-1, *asked.shape[1:])


def wanted_of(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    *,
    scored: bool = False,
    grades: GradesSpec | None = None,
) -> Wanted:
    """What the judged steps ask for. Raises ScenarioError where gate weights are needed and the trace has none."""
    tokens = np.moveaxis(tokens_by_rank(placement, reduction.slot_tokens), 1, 0)
    expert = tokens_by_rank(placement, placement.expert_of_slot[:, None, :] + 1)[:, 0].astype(np.int64) - 1
    placed = expert >= 0
    layer = np.arange(len(expert))[:, None, None]
    popular = np.where(placed, setting.fit_loads[layer, np.maximum(expert, 0)], 0)
    dear = cheap = None
    if grades is not None:
        before = _weight_before(setting, "grades go")
        dear = _sums(setting, before <= grades.high)[:, layer, expert] > 0
        cheap = (_sums(setting, before <= grades.low)[:, layer, expert] > 0) & ~dear
    return Wanted(
        tokens=np.ascontiguousarray(tokens),
        placed=placed,
        popular=popular.astype(np.float64),
        expert=expert,
        scores=_sums(setting, _weights(setting, "evict mrs goes"))[:, layer, expert] if scored else None,
        dear=dear,
        cheap=cheap,
    )


def _weights(setting: Setting, who: str) -> Scores:
    """Gate weights of the judged tokens in order of their steps, float64[layer, k, token]."""
    if setting.batches.trace.weights is None:
        raise ScenarioError(
            f"memory.offload: {who} by gate weights, and the trace holds none; use a trace with weights, or "
            "synthetic: {gate_spread: 1.5}"
        )
    weights: Scores = setting.batches.trace.weights[:, :, setting.batches.tokens.ravel()].astype(np.float64)
    return weights


def _weight_before(setting: Setting, who: str) -> Scores:
    """Sum of the weights of experts of the same token with a higher one, float64[layer, k, token]; all sum to 1."""
    weights = _weights(setting, who)
    shares = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    order = np.argsort(-shares, axis=1, kind="stable")
    ranked = np.take_along_axis(shares, order, axis=1)
    before: Scores = np.empty_like(shares)
    np.put_along_axis(before, order, ranked.cumsum(axis=1) - ranked, axis=1)
    return before


def _sums(setting: Setting, values: NDArray[Any]) -> Scores:
    """`values` [layer, k, token] summed over the tokens of every step, float64[step, layer, expert].

    The last expert is nobody. Replicas of an expert all see the whole sum.
    """
    trace, n_steps = setting.batches.trace, setting.batches.n_steps
    tokens = setting.batches.tokens.reshape(n_steps, -1)
    step = np.repeat(np.arange(n_steps), tokens.shape[1])
    size = n_steps * (trace.n_experts + 1)
    sums = np.empty((n_steps, trace.n_layers, trace.n_experts + 1))
    for layer in range(trace.n_layers):
        known = np.minimum(trace.ids[layer][:, tokens.ravel()].astype(np.int64), trace.n_experts)  # unused: largest id
        cells = (step * (trace.n_experts + 1) + known).ravel()
        weights = values[layer].astype(np.float64).ravel()
        sums[:, layer] = np.bincount(cells, weights, size).reshape(n_steps, -1)
    sums[..., -1] = 0.0
    return sums
