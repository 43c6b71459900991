"""How far the shipped laws of links are off on tables of communication timings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Times, inside_others
from hwmodels.calibration.link_problem import LinkProblem
from hwmodels.calibration.links import link_problems
from hwmodels.calibration.ship_links import JUDGED_ONLY, SHIPPED
from hwmodels.fitted import Fitted
from hwmodels.library import list_cards
from hwmodels.validation.goals import Judged, Progress, judged
from hwmodels.validation.score import Part, Score, score
from scenarios.errors import HardwareError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """Predictions of one problem; `inside` says which measured times lie in the band."""

    problem: LinkProblem
    part: Part
    predicted_s: Times
    inside: NDArray[np.bool_]


def links(folder: Path, progress: Progress) -> list[Judged]:
    """Shipped laws of links on rows that were left out of a fit, and on tables that they were not fitted on.

    Tables that `folder` lacks are left out.
    """
    every = [(shipped, shipped.table.find(folder)) for shipped in (*SHIPPED, *JUDGED_ONLY)]
    found = [(shipped, path) for shipped, path in every if path is not None]
    rows: list[Judged] = []
    for number, (shipped, path) in enumerate(found):
        progress(shipped.table.name, number / len(found))
        scores = score_link_table(path, shipped.links, shipped.table.name)
        rows += [judged("links", score) for score in scores if score.part != "card"]
    return rows


def score_link_table(path: Path, own_links: Iterable[str] = (), name: str = "") -> tuple[Score, ...]:
    """Scores of one table; the cards of `own_links` were fitted on it, and are judged on held-out rows as well.

    Raises HardwareError where no shipped card predicts a row of the table.
    """
    found = [one for problem in link_problems(path) for one in _predicted(problem, own=problem.link in own_links)]
    if not found:
        raise HardwareError(f"{path}: no shipped card claims these rows; calibrate one from the table first")
    groups: dict[tuple[str, str], list[_Judged]] = {}
    for one in found:
        groups.setdefault((one.part, one.problem.card), []).append(one)
    scores: list[Score] = []
    for members in groups.values():
        scores += [_score(name or path.name, [one], one.problem.name) for one in members]
        if len(members) > 1:
            scores.append(_score(name or path.name, members, f"{members[0].problem.subject} all".strip()))
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


def _predicted(problem: LinkProblem, *, own: bool) -> Iterator[_Judged]:
    block = shipped_block(problem)
    if block is None:
        return
    every = np.arange(len(problem.measured_s))
    predicted_s = problem.time_s(block, every)
    low, high = block.low_high
    ratio = problem.measured_s / predicted_s
    part: Part = "card" if own else "transfer"
    yield _Judged(problem=problem, part=part, predicted_s=predicted_s, inside=(ratio >= low) & (ratio <= high))
    if own:
        yield _held_out(problem, problem.shapes, "unseen shapes")
        if problem.sizes is not None:
            yield _held_out(problem, problem.sizes, "unseen rows")


def _held_out(problem: LinkProblem, groups: NDArray[np.int64], part: Part) -> _Judged:
    """Every fold predicted by constants of the others, inside or outside the band of the others' residuals."""
    found = problem.cross_fit(groups)
    inside = inside_others(problem.measured_s / found.held_out_s, found.fold)
    return _Judged(problem=problem, part=part, predicted_s=found.held_out_s, inside=inside)


def _score(table: str, members: Sequence[_Judged], name: str) -> Score:
    predicted_s = np.concatenate([one.predicted_s for one in members])
    measured_s = np.concatenate([one.problem.measured_s for one in members])
    inside = np.concatenate([one.inside for one in members])
    card = members[0].problem.card
    part = members[0].part
    shown = f"{name} by size" if part == "unseen rows" else name
    return score(shown, part, ("", table, members[0].problem.link, card), predicted_s, measured_s, inside)
