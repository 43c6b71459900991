"""What a placement solver is: a function, what it minimises, and which execution model it assumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from placement.plan import Placement
from placement.problem import PlacementProblem
from scenarios.placement_specs import PlacementSpec

ExecutionModel = Literal["home-return", "context-coherent", "any"]
ObjectiveName = Literal["load", "batch-load", "time", "hops", "visits", "node-visits"]
Need = Literal["batch_loads", "transitions", "coactivation", "sample", "machine", "speeds", "memory", "current"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A plan with what its solver proves about it.

    bound    no plan of the same problem has a smaller objective, as the solver proved; None: it proves nothing.
    stopped  whether a limit ended the search.
    """

    placement: Placement
    bound: float | None = None
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """A solver as the facade sees it.

    plan       (problem, spec) -> Placement or Answer; the same bits for the same seeds.
    objective  what it minimises; `placement.objectives` computes it anew from the plan.
    execution  "home-return": tokens go back to their own device after the experts; "context-coherent": they stay where
               the expert was; "any": the objective is the same in both.
    needs      fields of the problem that may be left out elsewhere, but not here.
    adjusts    whether it begins with the plan in force, where the problem has one.
    resizes    whether the plan may have other redundant slots than the problem, up to them.
    """

    plan: Callable[[PlacementProblem, PlacementSpec], Placement | Answer]
    objective: ObjectiveName = "load"
    execution: ExecutionModel = "any"
    needs: tuple[Need, ...] = ()
    adjusts: bool = False
    resizes: bool = False
