"""What plans are measured by: value and lower bound of each objective, computed from the plan alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from placement.bounds import busiest_rank_bound
from placement.moe_time import moe_times
from placement.plan import FloatArray, Placement, rank_loads
from placement.problem import PlacementProblem
from placement.solver import ObjectiveName
from placement.time_bound import moe_time_bound_s
from placement.visits import node_visits, node_visits_bound, rank_visits, rank_visits_bound
from scenarios.errors import PlacementError


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """`value` of a plan, and `bound`: no plan of the problem is below it; both in `unit`, both to be minimised."""

    unit: str
    value: Callable[[Placement, PlacementProblem], float]
    bound: Callable[[PlacementProblem], float]


def busiest_load(placement: Placement, problem: PlacementProblem) -> float:
    """Sum over layers of the busiest rank's load under even split [tokens]; over its speed, where ranks differ."""
    return float(_busiest(placement, problem, problem.loads).sum())


def busiest_load_bound(problem: PlacementProblem) -> float:
    """Lower bound on `busiest_load` [tokens]."""
    return float(_busiest_bound(problem, problem.loads).sum())


def mean_busiest_load(placement: Placement, problem: PlacementProblem) -> float:
    """`busiest_load` of every fitted step, mean over steps [tokens]."""
    steps = _batch_loads(problem)
    return float(np.mean([_busiest(placement, problem, loads).sum() for loads in steps]))


def mean_busiest_load_bound(problem: PlacementProblem) -> float:
    """Lower bound on `mean_busiest_load` [tokens]: the mean of bounds of single steps."""
    return float(np.mean([_busiest_bound(problem, loads).sum() for loads in _batch_loads(problem)]))


def moe_time_s(placement: Placement, problem: PlacementProblem) -> float:
    """Time of all MoE layers, mean over the fitted steps [s]."""
    if problem.machine is None or problem.sample is None:
        raise PlacementError("the time of a plan needs problem.machine and problem.sample")
    return float(moe_times(problem.machine, placement, problem.sample).step_s.mean())


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
    layer = np.arange(placement.n_layers)[:, None]
    np.add.at(shares, (layer, placement.expert_of_slot, placement.rank_of_slot), 1.0)
    counts: FloatArray = shares / placement.replica_counts()[:, :, None]
    return counts


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "load": Objective(unit="tokens", value=busiest_load, bound=busiest_load_bound),
    "batch-load": Objective(unit="tokens", value=mean_busiest_load, bound=mean_busiest_load_bound),
    "time": Objective(unit="s", value=moe_time_s, bound=moe_time_bound_s),
    "hops": Objective(unit="tokens", value=hops, bound=lambda _problem: 0.0),
    "visits": Objective(unit="ranks per token", value=rank_visits, bound=rank_visits_bound),
    "node-visits": Objective(unit="nodes per token", value=node_visits, bound=node_visits_bound),
}


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
