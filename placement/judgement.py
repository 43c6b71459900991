"""How good a plan is on traffic that it was not fitted on: time over EPLB's, its uncertainty, and overfitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from placement.exchange_time import Machine
from placement.moe_time import idle_times_s, moe_times
from placement.plan import FloatArray, Placement
from placement.sample import TokenSample
from scenarios.errors import PlacementError
from traces.batches import compose_batches
from traces.routing import RoutingTrace

N_GROUPS = 8  # groups of requests that are resampled; more leave too few requests in each to fill a batch
N_RESAMPLES = 2000
COVERAGE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Traffic to judge on: steps of groups of requests, no request in two groups."""

    name: str
    groups: tuple[TokenSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartJudgement:
    """A plan on one part.

    step_s      mean time of all MoE layers of a step [s].
    over_eplb   the same over that of the reference plan; below 1 the plan is faster.
    low, high   90 % bootstrap interval of `over_eplb`, groups of requests drawn with replacement.
    fixed_frac  share of the reference's time that no plan with as many slots changes: launches, latencies.
    """

    name: str
    step_s: float
    over_eplb: float
    low: float
    high: float
    fixed_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A plan on every part; `overfit`: as `is_overfit` says of the first, fitted part and the second."""

    parts: tuple[PartJudgement, ...]
    overfit: bool


def judge(machine: Machine, plan: Placement, reference: Placement, parts: Sequence[Part], seed: int = 0) -> Judgement:
    """The plan against the reference (EPLB with one spare slot a rank) on the fitted part, held-out requests, and more.

    Raises PlacementError for fewer than two parts.
    """
    if len(parts) < 2:
        raise PlacementError(f"a judgement needs the fitted part and a held-out one, got {len(parts)} parts")
    judged = tuple(_judged(machine, plan, reference, part, seed) for part in parts)
    return Judgement(parts=judged, overfit=is_overfit(judged[0], judged[1].over_eplb))


def is_overfit(fitted: PartJudgement, held_out: float) -> bool:
    """Whether a plan gains on the fitted part, and more than twice as much as on held-out requests (ratio of time).

    A gain whose interval reaches 0 is none: half of such a one is noise.
    """
    return fitted.high < 1 and 1 - fitted.over_eplb > 2 * (1 - held_out)


def grouped_part(
    name: str,
    trace: RoutingTrace,
    sequences: NDArray[np.int64],
    *,
    phase: Literal["decode", "prefill", "train"],
    shape: tuple[int, int, int],
    seed: int,
) -> Part:
    """Steps of `shape` (steps, devices, tokens per device) in all, from `N_GROUPS` random groups of the sequences.

    Fewer groups where there are fewer sequences or steps.
    """
    n_groups = max(1, min(N_GROUPS, len(sequences), shape[0]))
    rng = np.random.default_rng([seed, len(sequences)])
    groups = np.array_split(rng.permutation(sequences), n_groups)
    steps = [len(part) for part in np.array_split(np.arange(shape[0]), n_groups)]
    samples = [
        compose_batches(trace, group, phase=phase, shape=(n, *shape[1:]), context_tokens=None, rng=rng)
        for group, n in zip(groups, steps, strict=True)
    ]
    return Part(name=name, groups=tuple(TokenSample(trace=trace, tokens=batches.tokens) for batches in samples))


def _judged(machine: Machine, plan: Placement, reference: Placement, part: Part, seed: int) -> PartJudgement:
    own, other = (_group_times_s(machine, each, part) for each in (plan, reference))
    steps = sum(group.n_steps for group in part.groups)
    low, high = _interval(own, other, np.random.default_rng([seed, len(own)]))
    idle_s = idle_times_s(machine, reference, part.groups[0].tokens.shape[2])
    return PartJudgement(
        name=part.name,
        step_s=float(own.sum() / steps),
        over_eplb=float(own.sum() / other.sum()),
        low=low,
        high=high,
        fixed_frac=float(idle_s * steps / other.sum()),
    )


def _group_times_s(machine: Machine, plan: Placement, part: Part) -> FloatArray:
    """Time of all steps of each group, float64[group] [s]."""
    return np.array([moe_times(machine, plan, group).step_s.sum() for group in part.groups])


def _interval(own: FloatArray, other: FloatArray, rng: np.random.Generator) -> tuple[float, float]:
    """Percentile bootstrap of the ratio of sums (Efron and Tibshirani 1993, chapter 13)."""
    drawn = rng.integers(0, len(own), (N_RESAMPLES, len(own)))
    ratios = own[drawn].sum(axis=1) / other[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
