"""What validation is to reach, and what is accepted where that is missed, with the reason that was found."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from hwmodels.validation.score import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest errors, fractions of the measured time; none: not limited."""

    mean_ape: float | None = None
    median_ape: float | None = None
    p90_ape: float | None = None

    def exceeded(self, score: Score) -> tuple[str, ...]:
        """Names of the errors that are larger."""
        stated = {field.name: getattr(self, field.name) for field in fields(self)}
        return tuple(name for name, limit in stated.items() if limit is not None and getattr(score, name) > limit)

    def as_json(self) -> dict[str, float]:
        """The limits that there are."""
        stated = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in stated.items() if limit is not None}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A goal for the scores whose suite and name match."""

    suite: str
    name: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Errors accepted in place of a goal: measured ones with a margin of a tenth, on tables whose name matches."""

    name: str
    table: str
    limits: Limits
    cause: str
    suite: str = "kernels"


GOALS = (
    Goal(suite="kernels", name="moe (bf16|fp8) balanced", limits=Limits(mean_ape=0.06, median_ape=0.025, p90_ape=0.14)),
    Goal(suite="kernels", name="moe fp8_block balanced", limits=Limits(mean_ape=0.09, median_ape=0.04)),
    Goal(suite="kernels", name="moe .* EP 2 to 32", limits=Limits(mean_ape=0.13)),
    Goal(suite="skew", name="moe (bf16|fp8|fp8_block) skewed", limits=Limits(median_ape=0.04, p90_ape=0.20)),
    Goal(suite="kernels", name="gemm bf16", limits=Limits(mean_ape=0.08)),
    Goal(suite="kernels", name="(mla_)?prefill .*", limits=Limits(mean_ape=0.09, median_ape=0.06)),
    Goal(suite="kernels", name="(mla_)?decode .*", limits=Limits(mean_ape=0.07, median_ape=0.045)),
    Goal(suite="interpolation", name="moe .* interpolated", limits=Limits(median_ape=0.02)),
    Goal(suite="interpolation", name="gemm .* interpolated", limits=Limits(median_ape=0.03)),
    Goal(suite="interpolation", name="(mla_)?(prefill|decode) .* interpolated", limits=Limits(median_ape=0.04)),
    Goal(suite="transfer", name=".*", limits=Limits(median_ape=0.15)),
)
SGLANG_BF16 = Limits(mean_ape=0.09, median_ape=0.04)
"""SGLang's bf16 kernels are held to the goal of block-scaled ones."""

ACCEPTED: tuple[Accepted, ...] = ()


def verdict(suite: str, score: Score) -> Verdict:
    """The goal of a score and whether it is met, or else what is accepted."""
    goal = next((g.limits for g in GOALS if g.suite == suite and re.fullmatch(g.name, score.name)), None)
    if "sglang" in score.table and score.name == "moe bf16 balanced":
        goal = SGLANG_BF16
    if goal is None:
        return Verdict(goal=None, limit=None, cause="", reached=True, ok=True)
    if not goal.exceeded(score):
        return Verdict(goal=goal, limit=goal, cause="", reached=True, ok=True)
    for accepted in ACCEPTED:
        same = accepted.suite == suite and re.fullmatch(accepted.name, score.name)
        if same and re.search(accepted.table, score.table):
            ok = not accepted.limits.exceeded(score)
            return Verdict(goal=goal, limit=accepted.limits, cause=accepted.cause, reached=False, ok=ok)
    return Verdict(goal=goal, limit=goal, cause="", reached=False, ok=False)
