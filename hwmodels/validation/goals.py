"""What validation is to reach, and what is accepted where that is missed, with the reason that was found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass

from hwmodels.validation.accepted import ACCEPTED, Limits
from hwmodels.validation.accepted_runs import ACCEPTED_RUNS
from hwmodels.validation.accepted_steps import ACCEPTED_LAYERS, ACCEPTED_STEPS
from hwmodels.validation.score import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a score compares.

    goal    what is to be reached; none where nothing is.
    limit   what must not be exceeded: the goal, or what is accepted in its place, for the reason `cause`.
    """

    goal: Limits | None
    limit: Limits | None
    cause: str
    reached: bool
    ok: bool


Progress = Callable[[str, float], None]
"""Called with what is being judged and the share that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One row of a suite: a score, and what it is held to."""

    suite: str
    score: Score
    verdict: Verdict


def judged(suite: str, score: Score) -> Judged:
    """The score with its verdict."""
    return Judged(suite=suite, score=score, verdict=verdict(suite, score))


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A goal for the scores whose suite and name match."""

    suite: str
    name: str
    limits: Limits


GOALS = (
    Goal(suite="kernels", name="moe (bf16|fp8) balanced", limits=Limits(mean_ape=0.06, median_ape=0.025, p90_ape=0.14)),
    Goal(suite="kernels", name="moe fp8_block balanced", limits=Limits(mean_ape=0.09, median_ape=0.04)),
    Goal(suite="kernels", name="moe (bf16|fp8|fp8_block) EP 2-32 balanced", limits=Limits(mean_ape=0.13)),
    Goal(suite="skew", name="moe (bf16|fp8|fp8_block) skewed", limits=Limits(median_ape=0.04, p90_ape=0.20)),
    Goal(suite="kernels", name="gemm bf16", limits=Limits(mean_ape=0.08)),
    Goal(suite="kernels", name="(mla_)?prefill .*", limits=Limits(mean_ape=0.09, median_ape=0.06)),
    Goal(suite="kernels", name="(mla_)?decode .*", limits=Limits(mean_ape=0.07, median_ape=0.045)),
    Goal(suite="interpolation", name="moe .* interpolated", limits=Limits(median_ape=0.02)),
    Goal(suite="interpolation", name="moe (bf16|fp8|fp8_block) other slots", limits=Limits(median_ape=0.04)),
    Goal(suite="interpolation", name="gemm .* interpolated", limits=Limits(median_ape=0.03)),
    Goal(suite="interpolation", name="(mla_)?(prefill|decode) .* interpolated", limits=Limits(median_ape=0.04)),
    Goal(suite="transfer", name=".*", limits=Limits(median_ape=0.15)),
    Goal(suite="links", name="nccl all", limits=Limits(mean_ape=0.05)),
    Goal(suite="links", name="deepep-low-latency all( by size)?", limits=Limits(mean_ape=0.03)),
    Goal(suite="links", name="deepep-normal all", limits=Limits(mean_ape=0.07)),
    Goal(suite="links", name="nvl72-.* all", limits=Limits(mean_ape=0.04)),
    Goal(suite="links", name="all", limits=Limits(mean_ape=0.03)),
    Goal(suite="layers", name=".*", limits=Limits(median_ape=0.15)),
    Goal(suite="steps", name="tpot", limits=Limits(mean_ape=0.30, median_ape=0.20)),
    Goal(suite="measured", name=".*", limits=Limits(mean_ape=0.10)),
    Goal(suite="runs", name="steps .* fp32", limits=Limits(mean_ape=0.10)),
    Goal(suite="runs", name="steps .* bf16", limits=Limits(mean_ape=0.05)),
    Goal(suite="runs", name=".* fp32", limits=Limits(mean_ape=0.15)),
    Goal(suite="runs", name=".* bf16", limits=Limits(mean_ape=0.10)),
    Goal(suite="runs", name="ranking of .*", limits=Limits(mean_ape=0.0)),
    Goal(suite="published", name=".*", limits=Limits(median_ape=0.30)),
)
SGLANG_BF16 = Limits(mean_ape=0.09, median_ape=0.04)
"""SGLang's bf16 kernels are held to the goal of block-scaled ones."""


def verdict(suite: str, score: Score) -> Verdict:
    """The goal of a score and whether it is met, or else what is accepted."""
    goal = next((g.limits for g in GOALS if g.suite == suite and re.fullmatch(g.name, score.name)), None)
    if suite == "links" and score.part == "transfer":
        goal = None  # another version or engine: shown, and held to nothing
    if "sglang" in score.table and score.name == "moe bf16 balanced":
        goal = SGLANG_BF16
    if goal is None:
        return Verdict(goal=None, limit=None, cause="", reached=True, ok=True)
    if not exceeded(goal, score):
        return Verdict(goal=goal, limit=goal, cause="", reached=True, ok=True)
    for accepted in (*ACCEPTED, *ACCEPTED_LAYERS, *ACCEPTED_STEPS, *ACCEPTED_RUNS):
        same = accepted.suite == suite and re.fullmatch(accepted.name, score.name)
        if same and re.search(accepted.table, score.table):
            ok = not exceeded(accepted.limits, score)
            return Verdict(goal=goal, limit=accepted.limits, cause=accepted.cause, reached=False, ok=ok)
    return Verdict(goal=goal, limit=goal, cause="", reached=False, ok=False)


def exceeded(limits: Limits, score: Score) -> tuple[str, ...]:
    """Names of the errors that are larger than their limit."""
    return tuple(name for name, limit in stated(limits).items() if getattr(score, name) > limit)


def stated(limits: Limits) -> dict[str, float]:
    """The limits that there are, by name of the error."""
    return {name: limit for name, limit in asdict(limits).items() if limit is not None}
