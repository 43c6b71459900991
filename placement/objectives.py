"""What plans are measured by: value and lower bound of each objective, computed from the plan alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from placement.bounds import busiest_rank_bound
from placement.budgets import allocated
from placement.moe_time import moe_times
from placement.plan import FloatArray, Placement, rank_loads
from placement.problem import PlacementProblem, SharedSlots
from placement.solver import ObjectiveName
from placement.time_bound import moe_time_bound_s
from placement.visits import node_visits, node_visits_bound, rank_visits, rank_visits_bound
from scenarios.errors import PlacementError


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """`value` of a plan, and `bound`: no plan of the problem is below it; both in `unit`, both to be minimised.

    by_layer  value and bound float64[layer], whose sums they are; None where layers depend on each other.
    """

    unit: str
    value: Callable[[Placement, PlacementProblem], float]
    bound: Callable[[PlacementProblem], float]
    by_layer: ByLayer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ByLayer:
    """An objective layer by layer, float64[layer]: `value` of a plan, `bound` of all plans of the problem."""

    value: Callable[[Placement, PlacementProblem], FloatArray]
    bound: Callable[[PlacementProblem], FloatArray]


def shared_bound(layers: ByLayer, shared: SharedSlots, problem: PlacementProblem) -> float:
    """No plan whose layers share replica slots is below this: the bounds of layers under the best allocation of slots.

    A multiple-choice knapsack over the bound of every layer with every size.
    """
    bounds = np.stack([layers.bound(with_slots(problem, size)) for size in shared.sizes], axis=1)
    return allocated(bounds, shared).bound


def with_slots(problem: PlacementProblem, redundant: int) -> PlacementProblem:
    """The problem with so many replica slots in every layer."""
    return replace(problem, redundant=redundant, shared=None)


def hops(placement: Placement, problem: PlacementProblem) -> float:
    """Transitions between layers that end on another rank [tokens]; a token takes a random copy of its expert."""
    if problem.transitions is None:
        raise PlacementError("hops need problem.transitions")
    share = rank_shares(placement)
    stays = np.einsum("leg,lef,lfg->", share[:-1], problem.transitions, share[1:], optimize=True)
    return float(problem.transitions.sum() - stays)


def rank_shares(placement: Placement) -> FloatArray:
    """Share of each expert's tokens that each rank takes under even split, float64[layer, expert, rank]."""
    shares = np.zeros((placement.n_layers, placement.n_experts, placement.n_ranks))
    layer, slot = np.nonzero(placement.filled)
    np.add.at(shares, (layer, placement.expert_of_slot[layer, slot], placement.rank_of_slot[layer, slot]), 1.0)
    counts: FloatArray = shares / placement.replica_counts()[:, :, None]
    return counts


def _summed(
    unit: str,
    value: Callable[[Placement, PlacementProblem], FloatArray],
    bound: Callable[[PlacementProblem], FloatArray],
) -> Objective:
    """The sum over layers; where layers share slots, the bound is that of their best allocation."""
    layers = ByLayer(value=value, bound=bound)

    def least(problem: PlacementProblem) -> float:
        return float(bound(problem).sum()) if problem.shared is None else shared_bound(layers, problem.shared, problem)

    return Objective(
        unit=unit, value=lambda plan, problem: float(value(plan, problem).sum()), bound=least, by_layer=layers
    )


def _busiest_loads(placement: Placement, problem: PlacementProblem) -> FloatArray:
    """Load of the busiest rank under even split [tokens], float64[layer]; over its speed, where ranks differ."""
    return _busiest(placement, problem, problem.loads)


def _busiest_loads_bound(problem: PlacementProblem) -> FloatArray:
    return _busiest_bound(problem, problem.loads)


def _mean_busiest(placement: Placement, problem: PlacementProblem) -> FloatArray:
    """The same of every fitted step, mean over steps [tokens]."""
    means: FloatArray = np.mean([_busiest(placement, problem, loads) for loads in _batch_loads(problem)], axis=0)
    return means


def _mean_busiest_bound(problem: PlacementProblem) -> FloatArray:
    """The mean of bounds of single steps."""
    means: FloatArray = np.mean([_busiest_bound(problem, loads) for loads in _batch_loads(problem)], axis=0)
    return means


def _moe_layers_s(placement: Placement, problem: PlacementProblem) -> FloatArray:
    """Time of every MoE layer, mean over the fitted steps, experts over the speed of their rank [s]."""
    if problem.machine is None or problem.sample is None:
        raise PlacementError("the time of a plan needs problem.machine and problem.sample")
    times_s: FloatArray = moe_times(problem.machine, placement, problem.sample, problem.speeds).total_s.mean(axis=1)
    return times_s


def _busiest(placement: Placement, problem: PlacementProblem, loads: FloatArray) -> FloatArray:
    """Load of the busiest rank, float64[layer]."""
    per_rank = rank_loads(placement, loads)
    slowest: FloatArray = (per_rank if problem.speeds is None else per_rank / problem.speeds).max(axis=1)
    return slowest


def _busiest_bound(problem: PlacementProblem, loads: FloatArray) -> FloatArray:
    """Counting bound float64[layer]; with unlike speeds only the mean counts: total load over total speed."""
    if problem.speeds is not None and np.ptp(problem.speeds) > 0:
        mean: FloatArray = loads.sum(axis=1) / problem.speeds.sum()
        return mean
    speed = 1.0 if problem.speeds is None else float(problem.speeds[0])
    return busiest_rank_bound(loads, n_slots=problem.n_slots, n_ranks=problem.n_ranks) / speed


def _batch_loads(problem: PlacementProblem) -> FloatArray:
    """The fitted steps; without any the fitted part as one step."""
    return problem.loads[None] if problem.batch_loads is None else problem.batch_loads


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "load": _summed("tokens", _busiest_loads, _busiest_loads_bound),
    "batch-load": _summed("tokens", _mean_busiest, _mean_busiest_bound),
    "time": _summed("s", _moe_layers_s, moe_time_bound_s),
    "hops": Objective(unit="tokens", value=hops, bound=lambda _problem: 0.0),
    "visits": Objective(unit="ranks per token", value=rank_visits, bound=rank_visits_bound),
    "node-visits": Objective(unit="nodes per token", value=node_visits, bound=node_visits_bound),
}
