"""How far predictions are off a table of timings: errors by operation, data type and kind of row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.calibrate import ONE_RANK, main_kernels, problems_of, solve
from hwmodels.calibration.fit import Times, errors_of, inside_others
from hwmodels.calibration.problem import Problem
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.validation.timings import Timings
from scenarios.errors import CalibrationError

Part = Literal["card", "unseen shapes", "unseen rows", "transfer"]
"""Constants of the card as it is; constants refitted without the shape (the row) that is judged; of another card."""


Label = tuple[str, str, str, str]
"""Kernel source, table, device card and kernel card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Errors of one group of rows, fractions of the measured time.

    name         operation, data type and kind of row, such as "moe bf16 skewed".
    part         which constants predicted.
    kernel       what the table calls the kernel; "" where it does not say.
    bias         median of predicted over measured, minus one.
    coverage_80  share of rows inside the stated 80 % band; none where no band is stated.
    """

    name: str
    part: Part
    kernel: str
    table: str
    card: str
    constants: str
    n: int
    mean_ape: float
    median_ape: float
    p90_ape: float
    bias: float
    coverage_80: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Measured and predicted times of the rows of one problem, for plots: float64[row] [s]."""

    name: str
    kinds: NDArray[np.str_]
    measured_s: Times
    predicted_s: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Scores of one table; left_out counts the rows that nothing is claimed of, by reason."""

    table: str
    card: str
    constants: str
    scores: tuple[Score, ...]
    predictions: tuple[Predictions, ...]
    left_out: dict[str, int]


def validate_table(
    timings: Timings,
    device: Device,
    *,
    name: str = "",
    refit: bool = True,
    part: Part = "card",
    main_only: bool = False,
) -> Validation:
    """The kernel laws of a device against a table of timings.

    Every operation, data type and kind of row is scored twice: with the card's constants, and, where `refit`, with
    constants fitted on the other shapes of the same table, so that no constant has seen the shape that it predicts.
    `part` names the first kind of score. With `main_only`, only the kernel with most rows of a data type
    is judged, as kernel cards hold it.
    """
    problems, reasons = problems_of(timings, device)
    if main_only:
        problems = main_kernels(problems, timings, reasons)
    table = name or timings.path.name
    scores: list[Score] = []
    predictions: list[Predictions] = []
    for problem in problems:
        source = str(timings.source[problem.rows[0]])
        label = (source, table, device.card.name, device.kernels.name)
        constants = device.kernels.find(problem.block, problem.dtype)
        predicted_s = problem.law(constants, np.arange(len(problem.rows)))
        scores += _card_scores(problem, predicted_s, constants, label, part)
        scores += _unseen_scores(problem, label) if refit else []
        predictions.append(
            Predictions(
                name=f"{problem.block} {problem.dtype} ({source})",
                kinds=problem.kinds,
                measured_s=problem.measured_s,
                predicted_s=predicted_s,
            )
        )
    names, counts = np.unique(reasons[reasons != ""], return_counts=True)
    return Validation(
        table=table,
        card=device.card.name,
        constants=device.kernels.name,
        scores=tuple(scores),
        predictions=tuple(predictions),
        left_out=dict(zip(names.tolist(), counts.tolist(), strict=True)),
    )


def score(
    name: str,
    part: Part,
    label: Label,
    predicted_s: Times,
    measured_s: Times,
    inside: NDArray[np.bool_] | None = None,
) -> Score:
    """Errors of predictions; `inside` says which rows the band covers."""
    kernel, table, card, constants = label
    return Score(
        name=name,
        part=part,
        kernel=kernel,
        table=table,
        card=card,
        constants=constants,
        **errors_of(predicted_s, measured_s),
        coverage_80=None if inside is None else float(inside.mean()),
    )


def inside_band(predicted_s: Times, measured_s: Times, constants: Fitted) -> NDArray[np.bool_] | None:
    """Rows inside the 80 % band that constants state: bool[row]; None where they state none."""
    if not constants.states_error:
        return None
    low, high = constants.low_high
    ratio = measured_s / predicted_s
    inside: NDArray[np.bool_] = (low <= ratio) & (ratio <= high)
    return inside


def _card_scores(problem: Problem, predicted_s: Times, constants: Fitted, label: Label, part: Part) -> list[Score]:
    inside = inside_band(predicted_s, problem.measured_s, constants)
    return [
        score(name, part, label, predicted_s[rows], problem.measured_s[rows], None if inside is None else inside[rows])
        for name, rows in _groups(problem)
    ]


def _unseen_scores(problem: Problem, label: Label) -> list[Score]:
    """Scores by constants of other shapes; none where the rows do not suffice to fit any."""
    try:
        solved = solve(problem, "refitted", "")
    except CalibrationError:
        return []
    pooled = np.isin(problem.kinds, ONE_RANK)
    covered = inside_others(problem.measured_s / solved.held_out_s, solved.fold, pooled)
    return [
        score(name, "unseen shapes", label, solved.held_out_s[rows], problem.measured_s[rows], covered[rows])
        for name, rows in _groups(problem)
    ]


def _groups(problem: Problem) -> list[tuple[str, NDArray[np.bool_]]]:
    """("moe bf16 skewed", rows) of every kind of row."""
    base = f"{problem.block} {problem.dtype}"
    return [(f"{base} {kind}".rstrip(), problem.kinds == kind) for kind in np.unique(problem.kinds).tolist()]
