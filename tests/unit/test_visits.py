"""Distinct ranks and nodes per token of a plan and their bounds, through the problem and its sample."""

from dataclasses import replace

import numpy as np
import pytest

from placement.objectives import OBJECTIVES
from placement.problem import PlacementProblem, with_sample
from placement.sample import TokenSample
from placement.solve import solve
from placement.visits import node_visits, node_visits_bound, rank_visits, rank_visits_bound
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec
from tests.oracles.placement_brute import fewest_visits
from tests.small import trace_of

N_EXPERTS = 8


def problem_of(redundant: int = 0, unused: int = 0) -> PlacementProblem:
    """Two layers of eight experts on four ranks of two nodes; three experts a token, `unused` tokens with one fewer."""
    rng = np.random.default_rng(redundant)
    ids = np.stack([[rng.choice(N_EXPERTS, 3, replace=False) for _ in range(48)] for _ in range(2)]).transpose(0, 2, 1)
    ids[:, 2, :unused] = N_EXPERTS
    loads = np.stack([np.bincount(layer[layer < N_EXPERTS].ravel(), minlength=N_EXPERTS) for layer in ids])
    plain = PlacementProblem(loads=loads, n_ranks=4, ranks_per_node=2, redundant=redundant)
    trace = trace_of(np.minimum(ids, N_EXPERTS - 1), N_EXPERTS)
    padded = np.where(ids < N_EXPERTS, trace.ids, np.iinfo(trace.ids.dtype).max).astype(trace.ids.dtype)
    trace = replace(trace, ids=padded, variable_k=True) if unused else trace
    sample = TokenSample(trace=trace, tokens=np.arange(48).reshape(3, 4, 4))
    return with_sample(plain, sample)


def tokens_of(problem: PlacementProblem, layer: int) -> list[set[int]]:
    assert problem.sample is not None
    ids = problem.sample.ids(layer).transpose(0, 1, 3, 2).reshape(48, 3)
    return [{int(e) for e in row if e < N_EXPERTS} for row in ids]


@pytest.mark.parametrize("solver", ["contiguous", "round-robin", "eplb"])
def test_visits_are_those_of_sets(solver: str) -> None:
    problem = problem_of()
    plan = solve(problem, PlacementSpec.model_validate({"solver": solver})).placement
    layers = zip(plan.expert_of_slot.tolist(), plan.rank_of_slot.tolist(), strict=True)
    rank = [dict(zip(experts, ranks, strict=True)) for experts, ranks in layers]
    ranks = [len({rank[layer][e] for e in t}) for layer in range(2) for t in tokens_of(problem, layer)]
    nodes = [len({rank[layer][e] // 2 for e in t}) for layer in range(2) for t in tokens_of(problem, layer)]
    assert rank_visits(plan, problem) == pytest.approx(np.mean(ranks))
    assert node_visits(plan, problem) == pytest.approx(np.mean(nodes))


def test_bounds_are_below_the_optimum_of_every_layer() -> None:
    problem = problem_of()
    tokens = [np.array([sorted(t) for t in tokens_of(problem, layer)]) for layer in range(2)]
    best = [np.mean([fewest_visits(rows, N_EXPERTS, n_parts) for rows in tokens]) for n_parts in (4, 2)]
    assert 0.97 * best[0] <= rank_visits_bound(problem) <= best[0] + 1e-9
    assert 0.9 * best[1] <= node_visits_bound(problem) <= best[1] + 1e-9


@pytest.mark.parametrize("redundant", [4, 8])
def test_bounds_hold_for_plans_with_replicas(redundant: int) -> None:
    problem = problem_of(redundant)
    plan = solve(problem, PlacementSpec(solver="eplb", redundant=redundant)).placement
    assert 1 <= rank_visits_bound(problem) <= rank_visits(plan, problem)
    assert 1 <= node_visits_bound(problem) <= node_visits(plan, problem)


def test_tokens_with_fewer_experts_count_as_what_they_are() -> None:
    problem = problem_of(unused=10)
    plan = solve(problem, PlacementSpec(solver="eplb")).placement
    assert rank_visits_bound(problem) <= rank_visits(plan, problem)
    assert rank_visits_bound(problem) < rank_visits_bound(problem_of())


def test_one_node_is_one_visit_and_a_problem_without_tokens_says_so() -> None:
    one_node = replace(problem_of(), ranks_per_node=4)
    assert node_visits_bound(one_node) == 1
    plain = PlacementProblem(loads=np.ones((1, 4)), n_ranks=2, ranks_per_node=2)
    with pytest.raises(PlacementError, match="needs a sample"):
        rank_visits_bound(plain)
    assert {"visits", "node-visits"} <= set(OBJECTIVES)
