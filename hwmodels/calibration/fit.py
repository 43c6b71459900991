"""Least squares on log times with a robust loss, and the same on folds of shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

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
PRIOR = 0.02  # pull of log constants to their start, which only those feel that the rows do not fix
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
    """Constants fitted on all rows; float64[row] predictions by constants fitted without the row's fold int64[row]."""

    constants: dict[str, float]
    held_out_s: Times
    fold: NDArray[np.int64]


def fit(law: Law, measured_s: Times, parameters: Sequence[Parameter], rows: Rows) -> tuple[dict[str, float], float]:
    """Constants that minimise the robust squared log error over `rows`, and the error reached.

    Raises CalibrationError where there are fewer rows than parameters.
    """
    from scipy.optimize import least_squares

    if len(rows) < len(parameters):
        raise CalibrationError(f"{len(rows)} rows cannot fix {len(parameters)} constants; measure more shapes")
    if len(rows) > MAX_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_ROWS).astype(np.int64)]
    names = [parameter.name for parameter in parameters]
    log_measured = np.log(measured_s[rows])
    bounds = (np.log([p.low for p in parameters]), np.log([p.high for p in parameters]))
    start = np.clip(np.log([p.start for p in parameters]), bounds[0] + 1e-9, bounds[1] - 1e-9)

    def errors(logs: Times) -> Times:
        predicted_s = law(dict(zip(names, np.exp(logs).tolist(), strict=True)), rows)
        return np.concatenate([np.log(predicted_s) - log_measured, PRIOR * (logs - start)])

    found = least_squares(errors, start, bounds=bounds, loss="soft_l1", f_scale=SOFT, x_scale=1.0, max_nfev=200)
    return dict(zip(names, np.exp(found.x).tolist(), strict=True)), float(found.cost) / len(rows)


def cross_fit(
    law: Law,
    measured_s: Times,
    parameters: Sequence[Parameter],
    shapes: NDArray[np.int64],
    fitting: NDArray[np.bool_] | None = None,
    folds: int = FOLDS,
) -> CrossFit:
    """Constants of all fitting rows, and predictions of every fold of shapes by constants of the others.

    shapes   int64[row]: number of the shape of each row; rows of one shape share a fold.
    fitting  bool[row]: rows that constants may be fitted on, all where None; the others only are predicted.
    folds    into which shapes are dealt: 2 predicts either half by the other.
    """
    usable = np.full(len(measured_s), True) if fitting is None else fitting
    constants, _ = fit(law, measured_s, parameters, np.flatnonzero(usable))
    fold, predicted_s = fold_of_shapes(shapes, folds), np.empty(len(measured_s))
    for number in np.unique(fold):
        inside = np.flatnonzero(fold == number)
        others, _ = fit(law, measured_s, parameters, np.flatnonzero(usable & (fold != number)))
        predicted_s[inside] = law(others, inside)
    return CrossFit(constants=constants, held_out_s=predicted_s, fold=fold)


def fold_of_shapes(shapes: NDArray[np.int64], folds: int = FOLDS) -> NDArray[np.int64]:
    """Fold of every row, int64[row]: shapes take turns. Raises CalibrationError where there is but one shape."""
    distinct, place = np.unique(shapes, return_inverse=True)
    if len(distinct) < 2:
        raise CalibrationError("all rows have one shape; nothing can be left out to judge on: measure more shapes")
    return place % min(folds, len(distinct))


def band_of(ratios: Times) -> tuple[float, float]:
    """Ends of the band that holds 80 % of further ratios (measured over predicted) like these.

    The 10 % and 90 % quantiles at ranks p (n + 1) (Weibull), which stay unbiased for the few rows of a small table.
    """
    low, high = np.quantile(ratios, [0.1, 0.9], method="weibull").tolist()
    return low, high


class Errors(TypedDict):
    """Absolute errors over measured time; bias is the median of predicted over measured, minus one."""

    n: int
    mean_ape: float
    median_ape: float
    p90_ape: float
    bias: float


def errors_of(predicted_s: Times, measured_s: Times) -> Errors:
    """Errors of predictions, float64[row] each."""
    ratio = predicted_s / measured_s - 1
    error = np.abs(ratio)
    return Errors(
        n=len(ratio),
        mean_ape=float(error.mean()),
        median_ape=float(np.median(error)),
        p90_ape=float(np.quantile(error, 0.9)),
        bias=float(np.median(ratio)),
    )


def residuals_of(predicted_s: Times, measured_s: Times, fold: NDArray[np.int64] | None = None) -> Residuals:
    """Errors, 80 % band, and, where folds are given, how many rows lie inside the band of the other folds."""
    low, high = band_of(measured_s / predicted_s)
    return Residuals(
        **errors_of(predicted_s, measured_s),
        low=low,
        high=high,
        coverage_80=None if fold is None else float(inside_others(measured_s / predicted_s, fold).mean()),
    )


def inside_others(ratios: Times, fold: NDArray[np.int64], pooled: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Whether each row lies inside the 80 % band that the rows of the other folds give: bool[row].

    ratios  float64[row]: measured over held-out prediction.  pooled  bool[row]: rows that make the band; None: all.
    """
    usable = np.full(len(ratios), True) if pooled is None else pooled
    inside = np.zeros(len(ratios), dtype=bool)
    for number in np.unique(fold):
        here = fold == number
        others = ratios[~here & usable]
        low, high = band_of(others if len(others) else ratios)
        inside[here] = (low <= ratios[here]) & (ratios[here] <= high)
    return inside
