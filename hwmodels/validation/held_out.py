"""Errors of small tables: one row of a report, and predictions of every row by constants of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Parameter, Times, fit
from hwmodels.fitted import Fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class HostScore:
    """Errors of one law on one table; fractions of the measured value.

    bias         median of predicted/measured - 1.
    coverage_80  share of rows inside the card's 80 % band; none where the card states no band.
    """

    name: str
    table: str
    card: str
    n: int
    mean_ape: float
    median_ape: float
    p90_ape: float
    bias: float
    coverage_80: float | None


def score(
    what: tuple[str, str, str], predicted: NDArray[np.float64], measured: NDArray[np.float64], constants: Fitted | None
) -> HostScore:
    """The errors of predictions; `what` is name, table and card, `constants` state the band."""
    error = np.abs(predicted / measured - 1)
    coverage = None
    if constants is not None and (constants.residuals or constants.band):
        low, high = constants.low_high
        coverage = float(((measured / predicted >= low) & (measured / predicted <= high)).mean())
    return HostScore(
        name=what[0],
        table=what[1],
        card=what[2],
        n=len(error),
        mean_ape=float(error.mean()),
        median_ape=float(np.median(error)),
        p90_ape=float(np.quantile(error, 0.9)),
        bias=float(np.median(predicted / measured - 1)),
        coverage_80=coverage,
    )


def leave_one_out_s(law: Callable[..., Times], measured_s: Times, parameters: Sequence[Parameter]) -> Times:
    """Prediction of every row by constants fitted on all others: float64[row] [s]."""
    every = np.arange(len(measured_s))
    left_out = [fit(law, measured_s, parameters, np.delete(every, row))[0] for row in every]
    return np.concatenate([law(constants, every[row : row + 1]) for row, constants in enumerate(left_out)])
