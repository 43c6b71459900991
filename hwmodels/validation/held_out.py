"""Errors of small tables: rows of a suite, and predictions of every row by constants of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hwmodels.calibration.fit import Parameter, Times, fit
from hwmodels.fitted import Fitted
from hwmodels.validation.score import Part, Score, inside_band, score


def small_score(what: tuple[str, Part, str, str], predicted: Times, measured: Times, constants: Fitted | None) -> Score:
    """The errors of predictions; `what` is name, part, table and card, `constants` state the band."""
    name, part, table, card = what
    inside = None if constants is None else inside_band(predicted, measured, constants)
    return score(name, part, ("", table, card, card), predicted, measured, inside)


def leave_one_out_s(law: Callable[..., Times], measured_s: Times, parameters: Sequence[Parameter]) -> Times:
    """Prediction of every row by constants fitted on all others: float64[row] [s]."""
    every = np.arange(len(measured_s))
    left_out = [fit(law, measured_s, parameters, np.delete(every, row))[0] for row in every]
    return np.concatenate([law(constants, every[row : row + 1]) for row, constants in enumerate(left_out)])
