"""`flexmoe` and `smartmoe`: adjust the plan in force by what these systems may do to it.

FlexMoE (Nie et al., SIGMOD 2023) expands, shrinks and migrates replicas while its cost model gains; SmartMoE (Zhai et
al., USENIX ATC 2023) exchanges experts between devices. Both here by their moves, with the busiest rank as the cost;
their triggers, which decide when to adjust during training, are not part of a plan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.balance import swapped_until_even
from placement.baselines import contiguous
from placement.plan import FloatArray, Placement
from placement.problem import PlacementProblem, placement_from
from placement.saa import repointed
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec


def flexmoe(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """The current plan with copies shrunk and expanded, one at a time, then experts swapped, while the peak falls."""
    slots, speeds = _current(problem, spec), _speeds(problem)
    slots = repointed(slots, problem.loads_or_uniform()[:, None, :], speeds)
    return placement_from(swapped_until_even(slots, problem.loads_or_uniform(), speeds), problem, spec)


def smartmoe(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """The current plan with experts swapped between ranks while the peak falls; copies stay as many as they are."""
    slots = swapped_until_even(_current(problem, spec), problem.loads_or_uniform(), _speeds(problem))
    return placement_from(slots, problem, spec)


def _current(problem: PlacementProblem, spec: PlacementSpec) -> NDArray[np.int64]:
    """Slots of the plan in force, int64[layer, slot]; those of `contiguous` where there is none.

    Raises PlacementError where it has other slots than the problem.
    """
    plan = problem.current
    if plan is None:
        return contiguous(problem, spec).expert_of_slot.astype(np.int64)
    if plan.n_slots != problem.n_slots or (plan.slots_per_rank() != problem.slots_per_rank).any():
        raise PlacementError(
            f"the current plan has {plan.n_slots} slots a layer, the problem {problem.n_slots}, "
            f"{problem.slots_per_rank} on each rank; adjusting keeps slots: give redundant {plan.redundant_slots}"
        )
    return plan.expert_of_slot.astype(np.int64)


def _speeds(problem: PlacementProblem) -> FloatArray:
    return np.ones(problem.n_ranks) if problem.speeds is None else problem.speeds
