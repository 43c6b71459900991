"""Truths that hold for every problem: bounds below brute force below solvers, and experts without names."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.bounds import busiest_rank_bound
from placement.exact import EXACT_SOLVERS
from placement.plan import imbalance, rank_loads
from placement.problem import PlacementProblem
from placement.solve import SOLVERS, solve
from scenarios.placement_specs import PlacementSpec, SolverName

# Those that loads alone suffice for; exact ones have a suite of their own.
LOAD_SOLVERS = [name for name, solver in SOLVERS.items() if not solver.needs and name not in EXACT_SOLVERS]
SMALL = [(4, 2, 0), (6, 3, 0), (6, 2, 0), (3, 2, 1), (4, 3, 2), (4, 2, 2), (3, 3, 3), (2, 3, 4), (5, 2, 1)]


def all_plans(n_experts: int, n_slots: int) -> np.ndarray:
    """Every filling of the slots that holds each expert at least once, int[plan, slot]."""
    plans = np.array(list(itertools.product(range(n_experts), repeat=n_slots)))
    held = np.stack([(plans == expert).any(axis=1) for expert in range(n_experts)])
    return plans[held.all(axis=0)]


PLANS = {
    (n_experts, n_slots): all_plans(n_experts, n_slots) for n_experts, n_slots in {(e, e + r) for e, _, r in SMALL}
}


def brute_force(loads: np.ndarray, n_ranks: int, redundant: int) -> float:
    """Smallest possible load of the busiest rank of one layer under even split."""
    plans = PLANS[len(loads), len(loads) + redundant]
    counts = np.stack([(plans == expert).sum(axis=1) for expert in range(len(loads))], axis=1)
    shares = np.take_along_axis(loads / counts, plans, axis=1)
    return float(shares.reshape(len(plans), n_ranks, -1).sum(axis=2).max(axis=1).min())


def objective(solver: SolverName, loads: np.ndarray, n_ranks: int, redundant: int = 0) -> float:
    problem = PlacementProblem(loads=loads[None], n_ranks=n_ranks, ranks_per_node=n_ranks, redundant=redundant)
    return solve(problem, PlacementSpec(solver=solver, redundant=redundant)).objective


@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.sampled_from(SMALL))
def test_bound_below_optimum_below_every_solver(data: st.DataObject, size: tuple[int, int, int]) -> None:
    n_experts, n_ranks, redundant = size
    tokens = st.integers(0, 20) | st.sampled_from([0, 100])
    loads = np.array(data.draw(st.lists(tokens, min_size=n_experts, max_size=n_experts)), dtype=np.float64)
    best = brute_force(loads, n_ranks, redundant)
    bound = float(busiest_rank_bound(loads[None], n_slots=n_experts + redundant, n_ranks=n_ranks)[0])
    assert bound <= best + 1e-9
    for solver in LOAD_SOLVERS:
        assert best <= objective(solver, loads, n_ranks, redundant) + 1e-9


@settings(max_examples=25, deadline=None)
@given(loads=st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_greedy_is_optimal_with_two_slots_per_rank(loads: list[int]) -> None:
    # Longest first then folds: the largest with the smallest, which is optimal for pairs.
    tokens = np.array(loads, dtype=np.float64)
    assert objective("greedy", tokens, 3) == pytest.approx(brute_force(tokens, 3, 0))


@settings(max_examples=25, deadline=None)
@given(loads=st.lists(st.integers(0, 1000), min_size=16, max_size=16))
def test_greedy_is_global_eplb_without_replicas(loads: list[int]) -> None:
    problem = PlacementProblem(loads=np.array([loads]), n_ranks=4, ranks_per_node=4)
    plans = [solve(problem, PlacementSpec(solver=solver)).placement for solver in ("greedy", "eplb")]
    assert plans[0].expert_of_slot.tolist() == plans[1].expert_of_slot.tolist()


def is_prime(n: int) -> bool:
    return all(n % d for d in range(2, int(n**0.5) + 1))


# Distinct primes above the number of copies: no two shares load / copies are ever equal, so no tie needs an index.
PRIMES = [n for n in range(67, 1000) if is_prime(n)]


@settings(max_examples=25, deadline=None)
@given(
    loads=st.lists(st.sampled_from(PRIMES), min_size=16, max_size=16, unique=True),
    order=st.permutations(range(16)),
    redundant=st.sampled_from([0, 4, 8, 24]),
    solver=st.sampled_from(["greedy", "eplb"]),
)
def test_relabelled_experts_get_the_relabelled_plan(
    loads: list[int], order: list[int], redundant: int, solver: SolverName
) -> None:
    def slots(tokens: np.ndarray) -> np.ndarray:
        problem = PlacementProblem(loads=tokens[None], n_ranks=4, ranks_per_node=4, redundant=redundant)
        plan = solve(problem, PlacementSpec(solver=solver, redundant=redundant)).placement
        return np.asarray(plan.expert_of_slot[0])

    tokens = np.array(loads, dtype=np.float64)
    new_name = np.argsort(order)  # expert order[i] of the first problem is expert i of the second
    assert new_name[slots(tokens)].tolist() == slots(tokens[order]).tolist()


@settings(max_examples=25, deadline=None)
@given(loads=st.lists(st.integers(0, 1000), min_size=12, max_size=12), solver=st.sampled_from(sorted(LOAD_SOLVERS)))
def test_rank_loads_conserve_tokens_and_scale(loads: list[int], solver: SolverName) -> None:
    tokens = np.array([loads], dtype=np.float64)
    problem = PlacementProblem(loads=tokens, n_ranks=4, ranks_per_node=2, redundant=4, n_groups=2)
    plan = solve(problem, PlacementSpec(solver=solver, redundant=4)).placement
    per_rank = rank_loads(plan, tokens)
    assert per_rank.sum() == pytest.approx(tokens.sum())
    assert rank_loads(plan, 2 * tokens).tolist() == (2 * per_rank).tolist()
    assert 1 - 1e-12 <= imbalance(per_rank)[0] <= 4 + 1e-12
