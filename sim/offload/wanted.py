"""What the steps of a setting ask of every layer's experts on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.moe_time import tokens_by_rank
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
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
    """

    tokens: NDArray[np.int64]
    placed: Mask
    popular: Scores
    expert: NDArray[np.int64]
    scores: Scores | None = None

    @property
    def used(self) -> Mask:
        """bool[step, layer, rank, place]: whether the expert has a token."""
        return self.tokens > 0


def wanted_of(setting: Setting, placement: Placement, reduction: Reduction, *, scored: bool = False) -> Wanted:
    """What the judged steps ask for. Raises ScenarioError where scores are asked for and the trace has none."""
    tokens = np.moveaxis(tokens_by_rank(placement, reduction.slot_tokens), 1, 0)
    expert = tokens_by_rank(placement, placement.expert_of_slot[:, None, :] + 1)[:, 0].astype(np.int64) - 1
    placed = expert >= 0
    layer = np.arange(len(expert))[:, None, None]
    popular = np.where(placed, setting.fit_loads[layer, np.maximum(expert, 0)], 0)
    return Wanted(
        tokens=np.ascontiguousarray(tokens),
        placed=placed,
        popular=popular.astype(np.float64),
        expert=expert,
        scores=_scores(setting, expert) if scored else None,
    )


def _scores(setting: Setting, expert: NDArray[np.int64]) -> Scores:
    """Gate weights summed over the tokens of every step; replicas of an expert all see the whole sum."""
    trace = setting.batches.trace
    if trace.weights is None:
        raise ScenarioError(
            "memory.offload: evict mrs goes by gate weights, and the trace holds none; use lru, or a trace with weights"
        )
    n_steps = setting.batches.n_steps
    tokens = setting.batches.tokens.reshape(n_steps, -1)
    step = np.repeat(np.arange(n_steps), tokens.shape[1])
    sums = np.zeros((n_steps, trace.n_layers, trace.n_experts + 1))
    for layer in range(trace.n_layers):
        ids, weights = trace.ids[layer][:, tokens.ravel()], trace.weights[layer][:, tokens.ravel()]
        known = np.minimum(ids.astype(np.int64), trace.n_experts)  # an unused place has the largest id
        cells = (step * (trace.n_experts + 1) + known).ravel()
        size = n_steps * (trace.n_experts + 1)
        sums[:, layer] = np.bincount(cells, weights.astype(np.float64).ravel(), size).reshape(n_steps, -1)
    sums[..., -1] = 0.0
    layer_of = np.arange(trace.n_layers)[:, None, None]
    scores: Scores = sums[:, layer_of, expert]
    return scores
