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


def held_out_s(
    law: Law,
    measured_s: Times,
    parameters: Sequence[Parameter],
    fold: NDArray[np.int64],
    fitting: NDArray[np.bool_],
) -> Times:
    """Prediction of every row by constants fitted on the rows of other folds: float64[row] [s].

    fold     int64[row]: rows of one shape share a fold, see `fold_of_shapes`.
    fitting  bool[row]: rows that constants may be fitted on; the others only are predicted.
    """
    predicted_s = np.empty(len(measured_s))
    for number in np.unique(fold):
        inside = np.flatnonzero(fold == number)
        constants, _ = fit(law, measured_s, parameters, np.flatnonzero(fitting & (fold != number)))
        predicted_s[inside] = law(constants, inside)
    return predicted_s


def fold_of_shapes(shapes: NDArray[np.int64], folds: int = FOLDS) -> NDArray[np.int64]:
    """Fold of every row, int64[row]: shapes take turns. Raises CalibrationError where there is but one shape."""
    distinct, place = np.unique(shapes, return_inverse=True)
    if len(distinct) < 2:
        raise CalibrationError("all rows have one shape; nothing can be left out to judge on: measure more shapes")
    return place % min(folds, len(distinct))


def residuals_of(predicted_s: Times, measured_s: Times, fold: NDArray[np.int64]) -> Residuals:
    """Errors, 80 % band, and how many rows lie inside the band of the other folds."""
    ratio = predicted_s / measured_s - 1
    error = np.abs(ratio)
    low, high = band_of(predicted_s, measured_s)
    return Residuals(
        n=len(ratio),
        mean_ape=float(error.mean()),
        median_ape=float(np.median(error)),
        p90_ape=float(np.quantile(error, 0.9)),
        bias=float(np.median(ratio)),
        low=low,
        high=high,
        coverage_80=float(_covered(predicted_s, measured_s, fold).mean()),
    )


def band_of(predicted_s: Times, measured_s: Times) -> tuple[float, float]:
    """10 % and 90 % quantiles of measured over predicted time."""
    low, high = np.quantile(measured_s / predicted_s, [0.1, 0.9]).tolist()
    return low, high


def _covered(predicted_s: Times, measured_s: Times, fold: NDArray[np.int64]) -> NDArray[np.bool_]:
    covered = np.zeros(len(fold), dtype=bool)
    for number in np.unique(fold):
        inside = fold == number
        others = ~inside if not inside.all() else inside
        low, high = band_of(predicted_s[others], measured_s[others])
        ratio = measured_s[inside] / predicted_s[inside]
        covered[inside] = (low <= ratio) & (ratio <= high)
    return covered
