"""Plans whose layers share a budget of replica slots: every layer solved with every size, the best sizes chosen."""

from __future__ import annotations

import numpy as np

from placement.budgets import allocated
from placement.objectives import ByLayer, with_slots
from placement.plan import EMPTY, FloatArray, Int32Array, Placement
from placement.problem import PlacementProblem, placement_from
from placement.solver import Answer, Solver
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec


def shared_plan(problem: PlacementProblem, spec: PlacementSpec, solver: Solver, layers: ByLayer) -> Answer:
    """The best of the solver's plans with every size, layer by layer, within the slots that layers share.

    Which layer takes which size is a multiple-choice knapsack over the objective of the layers, solved to optimality:
    CRAFT (arXiv 2603.28768) does the same greedily by benefit. Raises PlacementError where the problem shares nothing.
    """
    shared = problem.shared
    if shared is None:
        raise PlacementError("shared_plan needs problem.shared")
    plans: list[Placement] = []
    costs: list[FloatArray] = []
    stopped = False
    for size in shared.sizes:
        sized = with_slots(problem, size)
        own = spec.model_copy(update={"redundant": size, "total_redundant": None})
        found = solver.plan(sized, own)
        answer = found if isinstance(found, Answer) else Answer(placement=found)
        plans.append(answer.placement)
        costs.append(layers.value(answer.placement, sized))
        stopped = stopped or answer.stopped
    chosen = allocated(np.stack(costs, axis=1), shared, time_limit_s=spec.time_limit)
    slots = [_widened(plans[option], layer, problem) for layer, option in enumerate(chosen.option.tolist())]
    return Answer(
        placement=placement_from(np.stack(slots), problem, spec), stopped=stopped or chosen.status != "optimal"
    )


def _widened(plan: Placement, layer: int, problem: PlacementProblem) -> Int32Array:
    """Slots of one layer with empty ones behind those of every rank, as many as the problem has."""
    slots = np.full((problem.n_ranks, problem.slots_per_rank), EMPTY, np.int32)
    own = plan.expert_of_slot[layer].reshape(problem.n_ranks, -1)
    slots[:, : own.shape[1]] = own
    return slots.ravel()
