"""Claims of a paper with their predictions and errors, as values and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from scenarios.errors import ScenarioError
from scenarios.loader import load_spec
from scenarios.paper_specs import ClaimSpec, PaperSpec
from scenarios.published import RATIO_UNITS
from sim.reproduce.cases import Cases
from sim.reproduce.expressions import evaluate
from sim.result import Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One claim. Numbers are in the unit of the publication.

    published, predicted  a number, or the cases of a ranking, best first.
    error                 predicted / published - 1; of a ranking the share of pairs in the wrong order; where the paper
                          states a limit, 0 on its right side.
    fitted_on             what numbers of the paper its cases were fitted on: never this one.
    """

    system: str
    claim: ClaimSpec
    published: float | tuple[str, ...]
    predicted: float | tuple[str, ...]
    unit: str
    error: float
    fitted_on: str

    @property
    def is_order(self) -> bool:
        """Whether the claim is an order of methods."""
        return isinstance(self.published, tuple)

    @property
    def is_ratio(self) -> bool:
        """Whether the claim is a number without a unit of its own."""
        return not self.is_order and self.unit in RATIO_UNITS

    def is_within(self, limit: float) -> bool:
        """Whether the error of a number is up to `limit`; an order must be right."""
        return abs(self.error) <= (0 if self.is_order else limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """Every claim of one paper, and the constants that its predictions rest on."""

    system: str
    rows: tuple[Row, ...]
    constants: tuple[Constant, ...]


def reproduced(path: Path, version: str) -> Reproduction:
    """Every claim of a paper's file with its prediction.

    Raises ScenarioError where the file contradicts itself, and what its scenarios raise.
    """
    paper = load_spec(path, PaperSpec)
    cases = Cases(paper, path.parent, version)
    try:
        cases.fit()
        rows = tuple(_row(paper, claim, cases) for claim in paper.claims)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None
    return Reproduction(system=paper.system, rows=rows, constants=cases.constants())


def _row(paper: PaperSpec, claim: ClaimSpec, cases: Cases) -> Row:
    published: float | tuple[str, ...]
    predicted: float | tuple[str, ...]
    if claim.predict is None:
        predicted, error = _ranked(claim, cases)
        published, unit, used = claim.order, "", set(claim.order)
    else:
        target = claim.target
        value, used = _predicted(claim, claim.predict, paper, cases)
        predicted, published, unit = value / target.factor, target.number, target.unit
        error = predicted / published - 1 if published else predicted
        if (claim.relation == "at-least" and error > 0) or (claim.relation == "at-most" and error < 0):
            error = 0.0
    return Row(
        system=paper.system,
        claim=claim,
        published=published,
        predicted=predicted,
        unit=unit,
        error=error,
        fitted_on="; ".join(f"{fit.path}: {fit.published} ({fit.source})" for fit in cases.fits_of(used)) or "nothing",
    )


def _predicted(claim: ClaimSpec, expression: str, paper: PaperSpec, cases: Cases) -> tuple[float, set[str]]:
    """The value of an expression, over a grid its mean, and the cases that it asks."""
    used: set[str] = set()

    def metric(name: str, case: str, point: dict[str, Any] | None) -> float:
        used.add(case)
        return cases.metric(name, case, point)

    points = [None] if claim.grid is None else list(paper.points(claim.grid))
    values = [evaluate(expression, partial(metric, point=point)) for point in points]
    return fmean(values), used


def _ranked(claim: ClaimSpec, cases: Cases) -> tuple[tuple[str, ...], float]:
    """Cases as predicted, best first, and the share of pairs that come out the other way round."""
    names = claim.order
    sign = 1 if claim.best == "lowest" else -1
    value = {name: sign * cases.metric(str(claim.rank), name) for name in names}
    wrong = [value[first] >= value[second] for first, second in combinations(names, 2)]
    return tuple(sorted(names, key=value.__getitem__)), sum(wrong) / len(wrong)


def missed(rows: Sequence[Row], limit: float) -> list[Row]:
    """Claims beyond the limit, and orders that are wrong, for which the file states no reason."""
    return [row for row in rows if row.claim.reason is None and not row.is_within(limit)]


def as_json(papers: Sequence[Reproduction]) -> dict[str, Any]:
    """The result file: one entry a claim, and one a constant of each system."""
    return {
        "claims": [_claim_json(row) for paper in papers for row in paper.rows],
        "constants": [{"system": paper.system, **asdict(one)} for paper in papers for one in paper.constants],
    }


def _claim_json(row: Row) -> dict[str, Any]:
    return {
        "system": row.system,
        "id": row.claim.id,
        "quantity": row.claim.quantity,
        "config": row.claim.config,
        "published": row.published,
        "predicted": row.predicted,
        "unit": row.unit,
        "error": row.error,
        "fitted_on": row.fitted_on,
        "mark": row.claim.mark,
        "source": row.claim.source,
        "reason": row.claim.reason,
    }
