"""Who keeps a slot: every rule is an array of priorities, in which the highest stay.

Of most rules a priority after a step depends on what was asked for, not on what the slots hold, so that it is an array
over steps; `arc` keeps account of the slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import ScenarioError
from scenarios.offload_specs import EvictionName, OffloadSpec
from sim.offload.arc import Arc
from sim.offload.replay import Keeper, Listed
from sim.offload.wanted import Scores, Wanted


def static(wanted: Wanted, _spec: OffloadSpec) -> Scores:
    """The same for ever, so that those of the start stay."""
    return np.zeros(wanted.tokens.shape)


def least_recent(wanted: Wanted, _spec: OffloadSpec) -> Scores:
    """Step of the last use; -1 before the first."""
    last = np.empty(wanted.used.shape)
    so_far = np.full(wanted.used.shape[1:], -1.0)
    for step, used in enumerate(wanted.used):
        so_far[used] = step
        last[step] = so_far
    return last


def least_frequent(wanted: Wanted, spec: OffloadSpec) -> Scores:
    """Uses so far, those before an eviction included; then the step of the last one."""
    uses = np.cumsum(wanted.used, axis=0, dtype=np.float64)
    return uses * (len(uses) + 1) + least_recent(wanted, spec)


def least_scored(wanted: Wanted, spec: OffloadSpec) -> Scores:
    """Mean router score S <- decay TopP(s) + (1 - decay) S (HybriMoE, arXiv 2504.05897, section on caching).

    Of the scores s of a step only those of the chosen experts are in a trace: TopP keeps top-k instead of 2 top-k.
    """
    if wanted.scores is None:
        raise ScenarioError("memory.offload: evict mrs goes by gate weights, and the trace holds none; use lru")
    means = np.empty_like(wanted.scores)
    mean = np.zeros(wanted.scores.shape[1:])
    for step, scores in enumerate(wanted.scores):
        mean = means[step] = spec.decay * scores + (1 - spec.decay) * mean
    return means


def fewest_ahead(wanted: Wanted, spec: OffloadSpec) -> Scores:
    """Uses in the next `window` steps: SCH of "Not all models suit expert offloading" (arXiv 2505.16056)."""
    so_far = np.cumsum(wanted.used, axis=0, dtype=np.float64)
    end = np.minimum(np.arange(len(so_far)) + spec.window * wanted.n_pooled * wanted.n_accesses, len(so_far) - 1)
    return so_far[end] - so_far


def belady(wanted: Wanted, _spec: OffloadSpec) -> Scores:
    """Minus the step of the next use (Belady, IBM Systems Journal 5, 1966): no rule hits more often."""
    n_steps = len(wanted.tokens)
    step = np.arange(n_steps)[:, None, None, None]
    upcoming = np.minimum.accumulate(np.where(wanted.used, step, 2 * n_steps)[::-1], axis=0)[::-1]
    following = np.full(wanted.tokens.shape, 2 * n_steps)
    following[:-1] = upcoming[1:]
    return -following.astype(np.float64)


def four_terms(wanted: Wanted, spec: OffloadSpec) -> Scores:
    """HOBBIT's priority (arXiv 2411.01433): w1 R/T + w2 F/T + w3 H/T + w4 (1 - (layers until its own)/(layers)).

    Of T steps so far, R is that of the last use, F counts uses and H those that had to be in high precision. The last
    term keeps experts of layers that are next: it tells experts apart where all layers share their slots, and there a
    step is a layer of one. Formulas read of the paper name the layers of that term the other way round.
    """
    n_steps, n_layers = len(wanted.tokens), wanted.n_pooled
    so_far = np.arange(1, n_steps + 1)[:, None, None, None]
    recent, frequent, exact, near = spec.terms
    dear = wanted.used if wanted.dear is None else wanted.dear
    counts = frequent * np.cumsum(wanted.used, axis=0) + exact * np.cumsum(dear, axis=0)
    until = (np.arange(n_layers)[None] - np.arange(n_steps)[:, None] % n_layers) % n_layers
    later = np.repeat(until / n_layers, wanted.tokens.shape[-1] // n_layers, axis=-1)[:, None, None]
    scores: Scores = (recent * (least_recent(wanted, spec) + 1) + counts) / so_far + near * (1 - later)
    return scores


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of eviction. `admits`: what was copied for a step gets a slot whatever its priority, as engines do.

    priorities  of all steps at once; None where they depend on what the slots hold (`arc`).
    """

    priorities: Callable[[Wanted, OffloadSpec], Scores] | None
    admits: bool = True
    needs_scores: bool = False


RULES: dict[EvictionName, Rule] = {
    "static": Rule(static, admits=False),
    "lru": Rule(least_recent),
    "lfu": Rule(least_frequent),
    "arc": Rule(None),
    "mrs": Rule(least_scored, needs_scores=True),
    "hobbit": Rule(four_terms),
    "sch": Rule(fewest_ahead, admits=False),
    "belady": Rule(belady, admits=False),
}


def keeper_of(wanted: Wanted, spec: OffloadSpec, slots: NDArray[np.int64], ties: Scores) -> Keeper:
    """Who keeps the `slots` int64[row] by the rule of the scenario; rows are the layers and ranks of `wanted`."""
    rule, n_places = RULES[spec.evict], wanted.tokens.shape[-1]
    if rule.priorities is None:
        return Arc(slots, ties)
    return Listed(rule.priorities(wanted, spec).reshape(len(wanted.tokens), -1, n_places))


def tie_break(wanted: Wanted, spec: OffloadSpec) -> Scores:
    """Who stays among equals, float64[layer, rank, place] below 1: by the order of the start, then the lower place."""
    order = wanted.popular if spec.start == "popular" else np.zeros_like(wanted.popular)
    n_places = order.shape[-1]
    ranks = np.argsort(np.argsort(-np.where(wanted.placed, order, -1.0), axis=-1, kind="stable"), axis=-1)
    ties: Scores = 1 - (ranks + 1) / n_places
    return ties
