"""A table of timings made into constants with residuals: families of kernels, folds of shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.attention import attention_problems
from hwmodels.calibration.fit import FOLDS, Constants, Rows, Times, cross_fit, fit, residuals_of
from hwmodels.calibration.gemm import gemm_problems
from hwmodels.calibration.moe import moe_problems
from hwmodels.calibration.problem import Problem
from hwmodels.calibration.rows import Reasons, no_reasons
from hwmodels.devices import Device
from hwmodels.fitted import Fitted, Residuals
from hwmodels.validation.timings import Timings

PROBLEMS: dict[str, Callable[[Timings, Device, Reasons], list[Problem]]] = {
    "moe": moe_problems,
    "gemm": gemm_problems,
    "attention": attention_problems,
    "mla": attention_problems,
}
"""Family of a table -> its calibration problems."""

ONE_RANK = ("", "balanced", "skewed")
"""Kinds of rows whose residuals make the band."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A problem with its constants, fitted on all fitting rows, and predictions by constants that never saw the shape.

    residuals   of held-out rows of one rank, whose quantiles make the band.
    held_out_s  float64[row of the problem]; fold int64 of the same.
    """

    problem: Problem
    constants: Fitted
    residuals: Residuals
    held_out_s: Times
    fold: NDArray[np.int64]


def problems_of(timings: Timings, device: Device) -> tuple[list[Problem], Reasons]:
    """Calibration problems of a table on a device, and why each row that is in none was left out."""
    reasons = no_reasons(timings)
    return PROBLEMS[timings.family](timings, device, reasons), reasons


def main_kernels(problems: Sequence[Problem], timings: Timings, reasons: Reasons) -> list[Problem]:
    """Of several kernels for one operation and data type, the one with most rows; writes into `reasons`."""
    main: dict[tuple[str, str], Problem] = {}
    for problem in sorted(problems, key=lambda problem: -int(problem.fitting.sum())):
        kept = main.setdefault((problem.block, problem.dtype), problem)
        if kept is not problem:
            source = timings.source[problem.rows[0]]
            reasons[problem.rows] = f"{problem.block} {problem.dtype}: another kernel has more rows than {source}"
    return [problem for problem in problems if main[problem.block, problem.dtype] is problem]


def solve(problem: Problem, source: str, table: str, folds: int = FOLDS) -> Solved:
    """Constants of a problem with their held-out residuals.

    Of several options (rules of tiles) the one is taken that fits best; a choice made on all shapes. Held-out residuals
    come of `folds` folds of shapes.
    Raises CalibrationError where rows or shapes are too few.
    """
    options = problem.options[0] if len(problem.options) == 1 else _best_options(problem)
    law = _law(problem, options)
    found = cross_fit(law, problem.measured_s, problem.parameters, problem.shapes, problem.fitting, folds)
    pooled = np.isin(problem.kinds, ONE_RANK)
    residuals = residuals_of(found.held_out_s[pooled], problem.measured_s[pooled], found.fold[pooled])
    numbers = {name: v for name, v in {**options, **found.constants}.items() if isinstance(v, float)}
    origin = {"source": source, "kind": "measured", "fitted_on": (table,), "residuals": rounded(residuals)}
    written = {name: _written(name, value) for name, value in numbers.items()}
    constants = problem.constants.model_validate({**options, **written, **origin})
    return Solved(
        problem=problem, constants=constants, residuals=residuals, held_out_s=found.held_out_s, fold=found.fold
    )


def digest(timings: Timings) -> str:
    """File name and digest of the times of a table, by which a card names what it was fitted on."""
    return f"{timings.path.name} {hashlib.sha256(timings.measured_s.tobytes()).hexdigest()[:8]}"


def rounded(residuals: Residuals) -> Residuals:
    """The residuals in four digits, as cards hold them."""
    numbers = residuals.model_dump()
    return Residuals.model_validate({name: _rounded(v) if isinstance(v, float) else v for name, v in numbers.items()})


def _best_options(problem: Problem) -> Mapping[str, object]:
    """The options under which all fitting rows are met best."""
    every = np.flatnonzero(problem.fitting)
    errors = [fit(_law(problem, o), problem.measured_s, problem.parameters, every)[1] for o in problem.options]
    return problem.options[int(np.argmin(errors))]


def _law(problem: Problem, options: Mapping[str, object]) -> Callable[[Constants, Rows], Times]:
    def law(values: Constants, rows: Rows) -> Times:
        return problem.law(problem.constants.model_construct(**{**options, **values}), rows)  # type: ignore[arg-type]

    return law


def _written(name: str, value: float) -> float | str:
    """The value as cards hold it: four digits, times with their unit."""
    return f"{value * 1e6:.4g} us" if name.endswith("_s") else _rounded(value)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
