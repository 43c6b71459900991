"""Claims of a paper with their predictions and errors, as values, JSON and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import rich.table
from rich.text import Text

from scenarios.loader import load_spec
from scenarios.paper_specs import ClaimSpec, PaperSpec
from scenarios.published import RATIO_UNITS
from sim.reproduce.cases import Cases
from sim.reproduce.expressions import evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One claim. Numbers are in the unit of the publication.

    published, predicted  a number, or the cases of a ranking, best first.
    error                 predicted / published - 1; of a ranking the share of pairs in the wrong order; where the paper
                          states a limit, 0 on its right side.
    fitted_on             what numbers of the paper the scenario was fitted on: never this one.
    """

    system: str
    claim: ClaimSpec
    published: float | tuple[str, ...]
    predicted: float | tuple[str, ...]
    unit: str
    error: float
    fitted_on: str

    @property
    def is_ratio(self) -> bool:
        """Whether the claim is a number without a unit of its own."""
        return not isinstance(self.published, tuple) and self.unit in RATIO_UNITS


def reproduced(path: Path, version: str) -> list[Row]:
    """Every claim of a paper's file with its prediction.

    Raises ScenarioError where the file contradicts itself, and what its scenarios raise.
    """
    paper = load_spec(path, PaperSpec)
    cases = Cases(paper, path.parent, version)
    cases.fit()
    return [_row(paper, claim, cases) for claim in paper.claims]


def _row(paper: PaperSpec, claim: ClaimSpec, cases: Cases) -> Row:
    fitted_on = "; ".join(f"{fit.path}: {fit.published} ({fit.source})" for fit in paper.fits) or "nothing"
    if claim.predict is None:
        order, error = _ranked(claim, cases)
        return Row(
            system=paper.system,
            claim=claim,
            published=claim.order,
            predicted=order,
            unit="",
            error=error,
            fitted_on=fitted_on,
        )
    target = claim.target
    predicted = evaluate(claim.predict, cases.metric) / target.factor
    error = predicted / target.number - 1 if target.number else predicted
    if (claim.relation == "at-least" and error > 0) or (claim.relation == "at-most" and error < 0):
        error = 0.0
    return Row(
        system=paper.system,
        claim=claim,
        published=target.number,
        predicted=predicted,
        unit=target.unit,
        error=error,
        fitted_on=fitted_on,
    )


def _ranked(claim: ClaimSpec, cases: Cases) -> tuple[tuple[str, ...], float]:
    """Cases as predicted, best first, and the share of pairs that come out the other way round."""
    names = claim.order
    sign = 1 if claim.best == "lowest" else -1
    value = {name: sign * cases.metric(str(claim.rank), name) for name in names}
    wrong = [value[first] >= value[second] for first, second in combinations(names, 2)]
    return tuple(sorted(names, key=value.__getitem__)), sum(wrong) / len(wrong)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The result file: one entry a claim."""
    return {
        "claims": [
            {
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
            for row in rows
        ]
    }


def claims_table(rows: Sequence[Row]) -> rich.table.Table:
    """One row a claim, those that are far off with their reason."""
    table = rich.table.Table(box=None, pad_edge=False)
    for header in ("system", "claim", "published", "predicted", "error"):
        table.add_column(header, overflow="fold", justify="left" if header in ("system", "claim") else "right")
    for row in rows:
        what = f"{row.claim.quantity}, {row.claim.config}" + (f"\n({row.claim.reason})" if row.claim.reason else "")
        published, predicted = (
            " < ".join(number) if isinstance(number, tuple) else f"{number:.4g} {row.unit}"
            for number in (row.published, row.predicted)
        )
        error = f"{row.error:.0%} of pairs" if isinstance(row.published, tuple) else f"{row.error:+.1%}"
        table.add_row(row.system, Text(what), published, predicted, error)
    return table


def summary(rows: Sequence[Row], limit: float) -> list[str]:
    """Errors of all claims in a few sentences."""
    ratios = [abs(row.error) for row in rows if row.is_ratio]
    numbers = [abs(row.error) for row in rows if not isinstance(row.published, tuple)]
    orders = [row for row in rows if isinstance(row.published, tuple)]
    lines = [f"{len(rows)} claims."]
    for name, errors in (("ratios", ratios), ("all numbers", numbers)):
        if errors:
            lines.append(f"Error of {len(errors)} {name}: median {median(errors):.1%}, largest {max(errors):.0%}.")
    if orders:
        right = sum(row.error == 0 for row in orders)
        lines.append(f"Orders of methods: {right} of {len(orders)} right.")
    far = missed(rows, limit)
    lines.append(f"Beyond {limit:.0%} or in the wrong order without a stated reason: {len(far)}.")
    return lines


def missed(rows: Sequence[Row], limit: float) -> list[Row]:
    """Claims beyond the limit, and orders that are wrong, for which the file states no reason."""
    return [
        row
        for row in rows
        if row.claim.reason is None and abs(row.error) > (0 if isinstance(row.published, tuple) else limit)
    ]
