"""Integer and linear programmes through PuLP: which solver runs them, for how long, and what it proved.

HiGHS solves them, CBC where HiGHS is missing. Values of variables may be read only where `Outcome.found`: after
"infeasible" PuLP leaves numbers in them that mean nothing.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pulp
from numpy.typing import NDArray

from scenarios.errors import PlacementError

EngineName = Literal["HiGHS", "CBC"]
Status = Literal["optimal", "time limit", "infeasible"]

MISSING = (
    "this solver needs HiGHS or CBC, and neither is installed: pip install 'highspy>=1.10,<1.15', or put the program "
    "'cbc' on the path; or choose a solver without a programme (balance, alsa, eplb, greedy)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a solver proved of a programme, in the programme's own sense and unit.

    status     "optimal": proved; "time limit": stopped before that; "infeasible": proved that no solution exists.
    found      the variables hold a feasible solution.
    objective  of that solution; nan where none was found.
    bound      no solution is better: below it (minimisation) or above it (maximisation); infinite where unknown.
    """

    status: Status
    found: bool
    objective: float
    bound: float
    engine: EngineName
    time_s: float


def engine_name() -> EngineName:
    """The solver that will run: HiGHS, or CBC where HiGHS is missing. Raises PlacementError where both are."""
    if pulp.HiGHS(msg=False).available():
        return "HiGHS"
    if _cbc_path() is not None:
        return "CBC"
    raise PlacementError(MISSING)


def solve_programme(
    programme: Any, *, time_limit_s: float, start: Mapping[str, float] | None = None, relaxed: bool = False
) -> Outcome:
    """What the solver proves of a pulp.LpProblem within `time_limit_s` [s]; its variables then hold the solution.

    `start` gives values by name of variable, a feasible solution to begin with; `relaxed` drops integrality.
    CBC tells PuLP no bound when it is stopped: the programme's linear relaxation, solved then, takes its place.
    Raises PlacementError where no solver is installed, or the time limit is not positive.
    """
    if not (math.isfinite(time_limit_s) and time_limit_s > 0):
        raise PlacementError(f"the time limit of a programme is {time_limit_s} s; give a positive number")
    engine = engine_name()
    run = _run_highs if engine == "HiGHS" else _run_cbc
    start_s = time.perf_counter()
    status, objective, bound = run(programme, time_limit_s, start, relaxed)
    return Outcome(
        status=status,
        found=not math.isnan(objective),
        objective=objective,
        bound=bound,
        engine=engine,
        time_s=time.perf_counter() - start_s,
    )


def weighted_sum(variables: Iterable[Any], weights: Iterable[float]) -> Any:
    """The expression sum of weight * variable; faster than adding up products."""
    return pulp.LpAffineExpression([(v, float(w)) for v, w in zip(variables, weights, strict=True)])


def total(variables: Iterable[Any]) -> Any:
    """The expression sum of variables."""
    return pulp.LpAffineExpression([(v, 1.0) for v in variables])


def binaries(programme: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """New 0/1 variables in an object array of `shape`, named name_i_j_..."""
    return _variables(programme, name, np.ones(shape), "Integer")


def fractions(programme: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """New variables in 0..1, not integer, in an object array of `shape`, named name_i_j_..."""
    return _variables(programme, name, np.ones(shape), "Continuous")


def integers(programme: Any, name: str, shape: tuple[int, ...], most: NDArray[Any]) -> NDArray[Any]:
    """New integer variables in 0..`most` (broadcast to `shape`) in an object array, named name_i_j_..."""
    return _variables(programme, name, np.broadcast_to(most, shape), "Integer")


def values_of(variables: NDArray[Any]) -> NDArray[np.float64]:
    """Values of an object array of variables, float64 of its shape; only after an outcome that found a solution."""
    return np.array([v.varValue or 0.0 for v in variables.ravel()]).reshape(variables.shape)


def _variables(programme: Any, name: str, most: NDArray[Any], category: str) -> NDArray[Any]:
    array = np.empty(most.shape, dtype=object)
    for index, upper in np.ndenumerate(most):
        array[index] = programme.add_variable("_".join((name, *map(str, index))), 0, float(upper), category)
    return array


def _run_highs(
    programme: Any, time_limit_s: float, start: Mapping[str, float] | None, relaxed: bool
) -> tuple[Status, float, float]:
    """Status, objective (nan: none) and bound by HiGHS, called as PuLP's own interface does, with a start added."""
    import highspy

    engine = pulp.HiGHS(mip=not relaxed, msg=False, timeLimit=time_limit_s, threads=1, random_seed=0)
    engine.createAndConfigureSolver(programme)
    engine.buildSolverModel(programme)
    model = programme.solverModel
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = [float(start.get(v.name, 0.0)) for v in programme.variables()]
        model.setSolution(solution)
    engine.callSolver(programme)
    info, state, kinds = model.getInfo(), model.getModelStatus(), highspy.HighsModelStatus
    sign = -1.0 if programme.sense == pulp.LpMaximize else 1.0
    if state in (kinds.kInfeasible, kinds.kUnboundedOrInfeasible):
        return "infeasible", math.nan, sign * math.inf
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    objective = sign * info.objective_function_value if found else math.nan
    if found:
        engine.findSolutionValues(programme)
    if state == kinds.kOptimal:
        return "optimal", objective, objective if relaxed else sign * info.mip_dual_bound
    return "time limit", objective, -sign * math.inf if relaxed else sign * info.mip_dual_bound


def _run_cbc(
    programme: Any, time_limit_s: float, start: Mapping[str, float] | None, relaxed: bool
) -> tuple[Status, float, float]:
    """Status, objective (nan: none) and bound by CBC."""
    sign = -1.0 if programme.sense == pulp.LpMaximize else 1.0
    for variable in programme.variables() if start is not None else ():
        variable.setInitialValue((start or {}).get(variable.name, 0.0), check=False)
    options = {"path": _cbc_path(), "msg": False, "timeLimit": time_limit_s, "threads": 1}
    state = programme.solve(pulp.COIN_CMD(mip=not relaxed, warmStart=start is not None, **options))
    if state == pulp.LpStatusInfeasible and programme.sol_status == pulp.LpSolutionInfeasible:
        return "infeasible", math.nan, sign * math.inf
    found = programme.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    objective = float(pulp.value(programme.objective)) if found else math.nan
    if programme.sol_status == pulp.LpSolutionOptimal:
        return "optimal", objective, objective
    return "time limit", objective, -sign * math.inf if relaxed else _relaxed_bound(programme, time_limit_s)


def _relaxed_bound(programme: Any, time_limit_s: float) -> float:
    """Objective of the linear relaxation by CBC; the values of the variables stay what they were."""
    kept = [v.varValue for v in programme.variables()]
    _, _, bound = _run_cbc(programme, time_limit_s, None, True)
    for variable, value in zip(programme.variables(), kept, strict=True):
        variable.varValue = value
    return bound


def _cbc_path() -> str | None:
    """Path of CBC: the program on the path, or the one that PuLP 3 carries; None where there is none."""
    found = shutil.which("cbc")
    if found is None:
        carried = pulp.apis.coin_api.__dict__.get("pulp_cbc_path")  # gone in PuLP 4
        found = carried if carried is not None and Path(carried).exists() else None
    return found
