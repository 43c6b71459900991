"""How far the shipped laws of links are off on tables of communication timings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Times, inside_others, residuals_of
from hwmodels.calibration.link_problem import LinkProblem
from hwmodels.calibration.links import link_problems
from hwmodels.calibration.ship_links import CARRIED_OVER, SHIPPED
from hwmodels.fitted import Fitted
from hwmodels.library import list_cards
from scenarios.errors import HardwareError


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkScore:
    """Errors of one law, or of several together, on rows of a table; fractions of the measured time.

    rows         "fitted": those that the card's constants come from; "held out": predicted without any row of their
                 shape, "held out sizes": of their number of tokens; "carried over": a table that nothing was fitted on.
    bias         median of predicted over measured, minus one.
    coverage_80  share of rows inside the stated 80 % band; of held-out rows, the band of the other folds.
    """

    name: str
    table: str
    card: str
    rows: str
    n: int
    mean_ape: float
    median_ape: float
    p90_ape: float
    bias: float
    coverage_80: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """Predictions of one problem; `inside` says which measured times lie in the band."""

    problem: LinkProblem
    rows: str
    predicted_s: Times
    inside: NDArray[np.bool_]


def validate_links(tables: Path) -> tuple[LinkScore, ...]:
    """Scores of all public communication tables below `tables`, by law and over each card.

    Raises HardwareError where a table is missing or unreadable.
    """
    scores = [score_link_table(tables / name, links) for name, (_, links) in SHIPPED.items()]
    scores += [score_link_table(tables / name) for name in CARRIED_OVER]
    return tuple(score for one_table in scores for score in one_table)


def score_link_table(path: Path, own_links: Iterable[str] = ()) -> tuple[LinkScore, ...]:
    """Scores of one table; the cards of `own_links` were fitted on it, and are judged on held-out rows as well.

    Raises HardwareError where no shipped card predicts a row of the table.
    """
    judged = [one for problem in link_problems(path) for one in _judged(problem, own=problem.link in own_links)]
    if not judged:
        raise HardwareError(f"{path}: no shipped card claims these rows; calibrate one from the table first")
    groups: dict[tuple[str, str], list[_Judged]] = {}
    for one in judged:
        groups.setdefault((one.rows, one.problem.card), []).append(one)
    scores: list[LinkScore] = []
    for members in groups.values():
        scores += [_score(path, [one], one.problem.name) for one in members]
        if len(members) > 1:
            scores.append(_score(path, members, f"{members[0].problem.subject} all".strip()))
    return tuple(scores)


def shipped_block(problem: LinkProblem) -> Fitted | None:
    """The constants of a shipped card that predict these rows; None where no card has them."""
    card = next((card for card in getattr(list_cards(), problem.kind) if card.name == problem.card), None)
    if card is None:
        return None
    if problem.kind == "exchanges":
        block: Fitted | None = getattr(card, problem.part.replace("-", "_"))
        return block
    wanted = tuple(problem.part.split())
    for law in card.laws:
        known = (law.op, str(law.n_devices)) if problem.kind == "collectives" else (law.direction, law.method)
        if known == wanted:
            found: Fitted = law
            return found
    return None


def _judged(problem: LinkProblem, *, own: bool) -> Iterator[_Judged]:
    block = shipped_block(problem)
    if block is None:
        return
    every = np.arange(len(problem.measured_s))
    predicted_s = problem.time_s(block, every)
    low, high = block.low_high
    ratio = problem.measured_s / predicted_s
    kind = "fitted" if own else "carried over"
    yield _Judged(problem=problem, rows=kind, predicted_s=predicted_s, inside=(ratio >= low) & (ratio <= high))
    if own:
        yield _held_out(problem, problem.shapes, "held out")
        if problem.sizes is not None:
            yield _held_out(problem, problem.sizes, "held out sizes")


def _held_out(problem: LinkProblem, groups: NDArray[np.int64], rows: str) -> _Judged:
    """Every fold predicted by constants of the others, inside or outside the band of the others' residuals."""
    found = problem.cross_fit(groups)
    inside = inside_others(problem.measured_s / found.held_out_s, found.fold)
    return _Judged(problem=problem, rows=rows, predicted_s=found.held_out_s, inside=inside)


def _score(path: Path, members: Sequence[_Judged], name: str) -> LinkScore:
    predicted_s = np.concatenate([one.predicted_s for one in members])
    measured_s = np.concatenate([one.problem.measured_s for one in members])
    errors = residuals_of(predicted_s, measured_s)
    return LinkScore(
        name=name,
        table=path.name,
        card=members[0].problem.card,
        rows=members[0].rows,
        n=errors.n,
        mean_ape=errors.mean_ape,
        median_ape=errors.median_ape,
        p90_ape=errors.p90_ape,
        bias=errors.bias,
        coverage_80=float(np.concatenate([one.inside for one in members]).mean()),
    )
