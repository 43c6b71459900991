"""Least squares on log times with a robust loss, and the same on folds of shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.fitted import Residuals
from scenarios.errors import CalibrationError

Times = NDArray[np.float64]
Rows = NDArray[np.int64]
Constants = Mapping[str, float]
Law = Callable[[Constants, Rows], Times]
"""Predicted time of the given rows of a table under some constants [s]."""

SOFT = 0.1  # log error from which a row counts as an outlier: its cost grows linearly instead of quadratically
MAX_ROWS = 2000  # rows that a fit looks at; more do not move constants by more than their spread over folds
FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A positive constant to fit, on a logarithmic scale between its bounds."""

    name: str
    start: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossFit:
    """Constants fitted on all rows, and the prediction of every row by constants fitted without its shape.

    held_out_s  float64[row]
    """

    constants: dict[str, float]
    fitted_s: Times
    held_out_s: Times


def fit(law: Law, measured_s: Times, parameters: Sequence[Parameter], rows: Rows | None = None) -> dict[str, float]:
    """Constants that minimise the robust squared log error over `rows` (all where None).

    Raises CalibrationError where there are fewer rows than parameters.
    """
    from scipy.optimize import least_squares

    chosen = np.arange(len(measured_s)) if rows is None else rows
    if len(chosen) < len(parameters):
        raise CalibrationError(f"{len(chosen)} rows cannot fix {len(parameters)} constants; measure more shapes")
    if len(chosen) > MAX_ROWS:
        chosen = chosen[np.linspace(0, len(chosen) - 1, MAX_ROWS).astype(np.int64)]
    names = [parameter.name for parameter in parameters]
    log_measured = np.log(measured_s[chosen])

    def errors(logs: Times) -> Times:
        times: Times = np.log(law(dict(zip(names, np.exp(logs).tolist(), strict=True)), chosen)) - log_measured
        return times

    bounds = (np.log([p.low for p in parameters]), np.log([p.high for p in parameters]))
    start = np.clip(np.log([p.start for p in parameters]), bounds[0] + 1e-9, bounds[1] - 1e-9)
    found = least_squares(errors, start, bounds=bounds, loss="soft_l1", f_scale=SOFT, x_scale=1.0, max_nfev=200)
    return dict(zip(names, np.exp(found.x).tolist(), strict=True))


def cross_fit(law: Law, measured_s: Times, parameters: Sequence[Parameter], shapes: NDArray[np.int64]) -> CrossFit:
    """Constants of all rows, and predictions of every fold of shapes by constants of the others.

    shapes  int64[row]: number of the shape of each row; rows of one shape are never split between folds.
    """
    every = np.arange(len(measured_s))
    constants = fit(law, measured_s, parameters)
    warm = [Parameter(name=p.name, start=constants[p.name], low=p.low, high=p.high) for p in parameters]
    held_out_s = np.empty(len(measured_s))
    fold = fold_of_shapes(shapes)
    for number in np.unique(fold):
        inside = fold == number
        others = fit(law, measured_s, warm, every[~inside])
        held_out_s[inside] = law(others, every[inside])
    return CrossFit(constants=constants, fitted_s=law(constants, every), held_out_s=held_out_s)


def fold_of_shapes(shapes: NDArray[np.int64], folds: int = FOLDS) -> NDArray[np.int64]:
    """Fold of every row, int64[row]: shapes take turns. Raises CalibrationError where there is but one shape."""
    distinct, place = np.unique(shapes, return_inverse=True)
    if len(distinct) < 2:
        raise CalibrationError("all rows have one shape; nothing can be left out to judge on: measure more shapes")
    return place % min(folds, len(distinct))


def band_of(ratios: Times) -> tuple[float, float]:
    """Ends of the band that holds 80 % of further ratios like these.

    The 10 % and 90 % quantiles at ranks p (n + 1) (Weibull), which stay unbiased for the few rows of a small table.
    """
    low, high = np.quantile(ratios, [0.1, 0.9], method="weibull").tolist()
    return low, high


def residuals_of(predicted_s: Times, measured_s: Times) -> Residuals:
    """Errors and 80 % band of held-out predictions."""
    ratio = predicted_s / measured_s - 1
    error = np.abs(ratio)
    low, high = band_of(measured_s / predicted_s)
    return Residuals(
        n=len(ratio),
        mean_ape=float(error.mean()),
        median_ape=float(np.median(error)),
        p90_ape=float(np.quantile(error, 0.9)),
        bias=float(np.median(ratio)),
        low=low,
        high=high,
    )
