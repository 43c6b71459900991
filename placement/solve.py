"""The one way to solve a placement problem: picks the solver, checks its plan, states objective, bound and gap."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from placement import baselines
from placement.bounds import busiest_rank_bound
from placement.checker import check_placement
from placement.eplb import eplb
from placement.plan import Placement, rank_loads
from placement.problem import PlacementProblem
from scenarios.errors import PlacementError
from scenarios.specs import PlacementSpec, SolverName

Solver = Callable[[PlacementProblem, PlacementSpec], Placement]

SOLVERS: dict[SolverName, Solver] = {
    "contiguous": baselines.contiguous,
    "round-robin": baselines.round_robin,
    "random": baselines.random,
    "greedy": baselines.greedy,
    "eplb": eplb,
}

ROUNDING = 1e-9  # relative; sums of loads differ by less between orders of summation


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A checked plan and how good it is on the loads it was fitted to.

    status     "optimal" where the objective reaches the bound, "heuristic" otherwise.
    objective  sum over layers of the busiest rank's load under even split [tokens].
    bound      no placement has a smaller objective [tokens].
    gap        (objective - bound) / bound; 0 where both are 0.
    time_s     time of the solver itself [s].
    """

    status: Literal["optimal", "heuristic"]
    placement: Placement
    objective: float
    bound: float
    gap: float
    time_s: float


def solve(problem: PlacementProblem, spec: PlacementSpec) -> Solved:
    """The plan of `spec.solver`, checked, with its objective, lower bound and gap.

    Raises PlacementError where `spec` and `problem` disagree on redundant slots, or a plan fails its check.
    """
    if spec.redundant != problem.redundant:
        raise PlacementError(f"the plan asks for {spec.redundant} redundant slots, the problem has {problem.redundant}")
    start_s = time.perf_counter()
    placement = SOLVERS[spec.solver](problem, spec)
    time_s = time.perf_counter() - start_s
    check_placement(placement, problem)
    objective = float(rank_loads(placement, problem.loads).max(axis=1).sum())
    bound = float(busiest_rank_bound(problem.loads, n_slots=problem.n_slots, n_ranks=problem.n_ranks).sum())
    if objective < bound * (1 - ROUNDING):
        raise PlacementError(f"plan {placement.name!r} has objective {objective} below its lower bound {bound}")
    optimal = objective <= bound * (1 + ROUNDING)
    return Solved(
        status="optimal" if optimal else "heuristic",
        placement=placement,
        objective=objective,
        bound=bound,
        gap=max(objective - bound, 0.0) / bound if bound > 0 else 0.0,
        time_s=time_s,
    )
