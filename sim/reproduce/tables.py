"""Reproductions in tables: claims, constants by kind and card, and a line a system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import rich.table
from rich.text import Text

from sim.reproduce.claims import Reproduction, Row, missed
from sim.result import Constant

KINDS = ("fitted", "assumed", "derived", "published", "datasheet", "measured")
"""Kinds of constants, the least certain first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemErrors:
    """Errors of one system: of its numbers the median, how many are up to the limit, and how many orders are right."""

    system: str
    n_numbers: int
    median_error: float | None
    n_within: int
    n_orders: int
    n_right: int

    def cells(self) -> tuple[str, ...]:
        """As a row of a table under `SYSTEM_HEADERS`."""
        error = "-" if self.median_error is None else f"{self.median_error:.1%}"
        return self.system, str(self.n_numbers), error, str(self.n_within), f"{self.n_right} of {self.n_orders}"


SYSTEM_HEADERS = ("system", "numbers", "median error", "within limit", "orders right")


def system_errors(system: str, rows: Sequence[Row], limit: float) -> SystemErrors:
    """What `rows` amount to."""
    numbers = [row for row in rows if not row.is_order]
    orders = [row for row in rows if row.is_order]
    return SystemErrors(
        system=system,
        n_numbers=len(numbers),
        median_error=median(abs(row.error) for row in numbers) if numbers else None,
        n_within=sum(row.is_within(limit) for row in numbers),
        n_orders=len(orders),
        n_right=sum(row.is_within(limit) for row in orders),
    )


def systems_table(papers: Sequence[Reproduction], limit: float) -> rich.table.Table:
    """One row a system, and one over all of them where they are several."""
    table = _table(*SYSTEM_HEADERS)
    for paper in papers:
        table.add_row(*system_errors(paper.system, paper.rows, limit).cells())
    if len(papers) > 1:
        rows = [row for paper in papers for row in paper.rows]
        table.add_row(*system_errors("all", rows, limit).cells(), style="bold")
    return table


def claims_table(rows: Sequence[Row]) -> rich.table.Table:
    """One row a claim, those that are far off with their reason."""
    table = _table("system", "claim", "published", "predicted", "error")
    for row in rows:
        what = f"{row.claim.quantity}, {row.claim.config}" + (f"\n({row.claim.reason})" if row.claim.reason else "")
        published, predicted = (
            " < ".join(number) if isinstance(number, tuple) else f"{number:.4g} {row.unit}"
            for number in (row.published, row.predicted)
        )
        error = f"{row.error:.0%} of pairs" if row.is_order else f"{row.error:+.1%}"
        if row.unit == "%" and isinstance(row.predicted, float) and isinstance(row.published, float):
            error += f"\n({row.predicted - row.published:+.1f} points)"
        table.add_row(row.system, Text(what), published, predicted, error)
    return table


def constants_table(papers: Sequence[Reproduction]) -> rich.table.Table:
    """What predictions rest on: fitted numbers with what they were fitted on, others by kind and card.

    Values and sources of all of them are in the result file.
    """
    table = _table("system", "constants", "what", left=3)
    for paper in papers:
        for kind in KINDS:
            found = [one for one in paper.constants if one.kind == kind]
            if found:
                table.add_row(paper.system, f"{len(found)} {kind}", Text(_told(found)))
    return table


def _told(constants: Sequence[Constant]) -> str:
    if constants[0].kind == "fitted":
        return "\n".join(f"{one.name} {one.value} ({one.source})" for one in constants)
    by_card: dict[str, dict[str, None]] = {}
    for one in constants:
        card, _, name = one.name.partition(" ")
        by_card.setdefault(card, {})[name] = None
    return "; ".join(f"{card} {', '.join(names)}" for card, names in by_card.items())


def summary(rows: Sequence[Row], limit: float) -> list[str]:
    """Errors of all claims in a few sentences."""
    ratios = [abs(row.error) for row in rows if row.is_ratio]
    numbers = [abs(row.error) for row in rows if not row.is_order]
    lines = [f"{len(rows)} claims."]
    for name, errors in (("ratios", ratios), ("numbers in all", numbers)):
        if errors:
            lines.append(f"Error of {len(errors)} {name}: median {median(errors):.1%}, largest {max(errors):.0%}.")
    far = missed(rows, limit)
    lines.append(f"Beyond {limit:.0%} or in the wrong order without a stated reason: {len(far)}.")
    return lines


def _table(*headers: str, left: int = 2) -> rich.table.Table:
    table = rich.table.Table(box=None, pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(header, overflow="fold", justify="left" if place < left else "right")
    return table
