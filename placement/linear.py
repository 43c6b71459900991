"""Linear programmes whose bound is computed again from the dual solution, so that it holds whatever the tolerances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from placement.plan import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProgramme:
    """min cost x with at_most x <= limit, equal x = level, lower <= x <= upper; matrices are sparse, bounds finite."""

    cost: FloatArray
    at_most: Any
    limit: FloatArray
    equal: Any
    level: FloatArray
    lower: FloatArray
    upper: FloatArray


def solve_linear(programme: LinearProgramme, *, method: str = "highs") -> tuple[FloatArray, float]:
    """A solution float64[variable] and a proved lower bound of the programme; -inf and lower where the solver failed.

    The bound is the Lagrange function at the solver's dual values y <= 0 (rows at most) and u (rows equal):
    limit y + level u + sum_j min over lower_j..upper_j of (cost - at_most' y - equal' u)_j x_j. Any y <= 0 and u make
    it a lower bound; the solver's precision decides only how tight it is.
    """
    options: dict[str, Any] = {
        "A_ub": programme.at_most,
        "b_ub": programme.limit,
        "A_eq": programme.equal,
        "b_eq": programme.level,
        "bounds": np.stack([programme.lower, programme.upper], axis=1),
        "method": method,
    }
    result = scipy.optimize.linprog(programme.cost, **options)
    if not result.success:
        return programme.lower, -np.inf
    rows = np.minimum(result.ineqlin.marginals, 0.0)
    columns = result.eqlin.marginals
    reduced = programme.cost - programme.at_most.T @ rows - programme.equal.T @ columns
    least = np.minimum(reduced * programme.lower, reduced * programme.upper).sum()
    return result.x, float(programme.limit @ rows + programme.level @ columns + least)
