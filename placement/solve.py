"""The one way to solve a placement problem: picks the solver, checks its plan, states objective, bound and gap."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

from placement import baselines
from placement.adjust import flexmoe, smartmoe
from placement.auto import auto
from placement.balance import balance
from placement.checker import check_placement
from placement.eplb import eplb
from placement.exact import EXACT_SOLVERS
from placement.joint import joint
from placement.objectives import OBJECTIVES
from placement.plan import Placement
from placement.problem import PlacementProblem
from placement.saa import saa
from placement.shared_slots import shared_plan
from placement.solver import Answer, ExecutionModel, ObjectiveName, Solver
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec, SolverName

SOLVERS: dict[SolverName, Solver] = {
    "contiguous": Solver(plan=baselines.contiguous),
    "round-robin": Solver(plan=baselines.round_robin),
    "random": Solver(plan=baselines.random),
    "greedy": Solver(plan=baselines.greedy),
    "eplb": Solver(plan=eplb),
    "balance": Solver(plan=balance),
    "flexmoe": Solver(plan=flexmoe, adjusts=True),
    "smartmoe": Solver(plan=smartmoe, adjusts=True),
    "saa": Solver(plan=saa, objective="batch-load", needs=("batch_loads",)),
    "joint": Solver(plan=joint, objective="time", execution="home-return", needs=("batch_loads", "sample", "machine")),
    "auto": Solver(
        plan=auto, objective="time", execution="home-return", needs=("batch_loads", "sample", "machine"), resizes=True
    ),
    **EXACT_SOLVERS,
}

ROUNDING = 1e-9  # relative; sums of loads differ by less between orders of summation


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A checked plan and how good it is on the part of the trace that it was fitted to.

    status          "optimal" where the objective reaches the bound, "stopped" where a limit ended the search,
                    "heuristic" otherwise.
    objective       what the solver minimises, computed from the plan [unit]; its name is `objective_name`.
    bound           no plan with as many slots has a smaller objective [unit].
    gap             (objective - bound) / bound; 0 where both are 0, infinite where only the bound is.
    time_s          time of the solver itself [s].
    execution       the execution model that the objective assumes.
    """

    status: Literal["optimal", "stopped", "heuristic"]
    placement: Placement
    objective: float
    bound: float
    gap: float
    time_s: float
    unit: str
    objective_name: ObjectiveName
    execution: ExecutionModel


def solve(problem: PlacementProblem, spec: PlacementSpec) -> Solved:
    """The plan of `spec.solver`, checked, with its objective, lower bound and gap.

    Raises PlacementError where `spec` and `problem` disagree on redundant slots, the problem lacks what the solver
    needs, or a plan fails its check.
    """
    if spec.solver == "file":
        raise PlacementError(f"the plan of {spec.file} is read, not solved; see placement.formats")
    solver = SOLVERS[spec.solver]
    _check_slots(problem, spec, solver)
    missing = [field for field in solver.needs if getattr(problem, field) is None]
    if missing:
        remedy = "; name the file of the plan in force: current: FILE" if missing == ["current"] else ""
        raise PlacementError(f"solver {spec.solver} needs {' and '.join(missing)}, which the problem lacks{remedy}")
    start_s = time.perf_counter()
    found = solver.plan(problem, spec) if problem.shared is None else _shared(problem, spec, solver)
    time_s = time.perf_counter() - start_s
    answer = found if isinstance(found, Answer) else Answer(placement=found)
    if solver.resizes:
        problem = replace(problem, redundant=answer.placement.redundant_slots)
    check_placement(answer.placement, problem)
    return _judged(problem, solver, answer, time_s)


def _check_slots(problem: PlacementProblem, spec: PlacementSpec, solver: Solver) -> None:
    total = None if problem.shared is None else problem.shared.total
    if spec.total_redundant != total:
        raise PlacementError(f"the plan shares {spec.total_redundant} redundant slots, the problem {total}")
    if not solver.resizes and total is None and spec.redundant != problem.redundant:
        raise PlacementError(f"the plan asks for {spec.redundant} redundant slots, the problem has {problem.redundant}")


def _shared(problem: PlacementProblem, spec: PlacementSpec, solver: Solver) -> Answer:
    """The plan whose layers share slots; raises PlacementError for solvers that keep slots, or look across layers."""
    layers = OBJECTIVES[solver.objective].by_layer
    if layers is None or solver.adjusts or solver.resizes:
        able = [name for name, each in SOLVERS.items() if OBJECTIVES[each.objective].by_layer is not None]
        names = ", ".join(name for name in able if not (SOLVERS[name].adjusts or SOLVERS[name].resizes))
        raise PlacementError(f"solver {spec.solver} cannot share total_redundant between layers; take one of {names}")
    return shared_plan(problem, spec, solver, layers)


def _judged(problem: PlacementProblem, solver: Solver, answer: Answer, time_s: float) -> Solved:
    objective = OBJECTIVES[solver.objective]
    value, bound = objective.value(answer.placement, problem), objective.bound(problem)
    if answer.bound is not None:
        bound = max(bound, answer.bound)
    if value < bound * (1 - ROUNDING):
        raise PlacementError(f"plan {answer.placement.name!r} has objective {value} below its lower bound {bound}")
    excess = max(value - bound, 0.0)
    optimal = value <= bound * (1 + ROUNDING)
    return Solved(
        status="optimal" if optimal else "stopped" if answer.stopped else "heuristic",
        placement=answer.placement,
        objective=value,
        bound=bound,
        gap=excess / bound if bound > 0 else (float("inf") if excess > 0 else 0.0),
        time_s=time_s,
        unit=objective.unit,
        objective_name=solver.objective,
        execution=solver.execution,
    )
