"""Every placement solver through one suite; a solver that is named but missing, or the reverse, fails it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from placement.bounds import busiest_rank_bound
from placement.checker import check_placement
from placement.problem import PlacementProblem
from placement.solve import SOLVERS, Solved, solve
from scenarios.specs import PlacementSpec, SolverName, SplitName

ROOT = Path(__file__).resolve().parents[2]


def loads_of(kind: str, n_layers: int, n_experts: int) -> np.ndarray:
    """Loads of a kind [tokens], float64[layer, expert]."""
    rng = np.random.default_rng([n_layers, n_experts])
    loads = {
        "skewed": np.round(1000 * rng.lognormal(0, 1, (n_layers, n_experts))),
        "ties": rng.integers(0, 3, (n_layers, n_experts)).astype(np.float64),
        "one hot": np.where(np.arange(n_experts) == 1, 999.0, 0.0) * np.ones((n_layers, 1)),
        "idle layer": np.where(np.arange(n_layers)[:, None] == 0, 0.0, rng.integers(1, 99, (n_layers, n_experts))),
    }[kind]
    return np.asarray(loads)


# kind of loads, layers, experts, ranks, ranks per node, redundant slots, expert groups
PROBLEMS = [
    ("skewed", 1, 8, 2, 8, 0, 1),
    ("skewed", 3, 8, 8, 8, 0, 1),
    ("ties", 4, 12, 8, 4, 4, 4),
    ("ties", 2, 6, 4, 2, 14, 3),
    ("one hot", 2, 8, 4, 4, 24, 1),
    ("one hot", 2, 16, 4, 2, 8, 4),
    ("idle layer", 3, 4, 6, 8, 2, 1),
    ("idle layer", 2, 64, 8, 8, 8, 1),
    ("skewed", 2, 60, 16, 8, 20, 1),
    ("skewed", 3, 256, 32, 8, 0, 8),
    ("skewed", 3, 256, 32, 8, 32, 8),
]


def problem_of(row: tuple[str, int, int, int, int, int, int], seed: int = 0) -> PlacementProblem:
    kind, n_layers, n_experts, n_ranks, ranks_per_node, redundant, n_groups = row
    return PlacementProblem(
        loads=loads_of(kind, n_layers, n_experts),
        n_ranks=n_ranks,
        ranks_per_node=ranks_per_node,
        redundant=redundant,
        n_groups=n_groups,
        seed=seed,
    )


def solved(solver: SolverName, problem: PlacementProblem, seed: int = 0) -> Solved:
    return solve(problem, PlacementSpec(solver=solver, redundant=problem.redundant, seed=seed))


def busiest_by_loops(result: Solved, problem: PlacementProblem) -> float:
    """Sum over layers of the busiest rank's load under even split, with nothing but loops."""
    total = 0.0
    slots = result.placement.expert_of_slot.tolist()
    for experts, loads in zip(slots, problem.loads.tolist(), strict=True):
        room = len(experts) // problem.n_ranks
        shares = [loads[expert] / experts.count(expert) for expert in experts]
        total += max(sum(shares[rank * room : (rank + 1) * room]) for rank in range(problem.n_ranks))
    return total


def test_every_named_solver_exists_and_no_other() -> None:
    assert set(SOLVERS) == set(get_args(SolverName))


@pytest.mark.parametrize("row", PROBLEMS, ids=lambda row: "-".join(map(str, row)))
@pytest.mark.parametrize("solver", SOLVERS)
def test_plans_are_valid_and_judged_rightly(solver: SolverName, row: tuple[str, int, int, int, int, int, int]) -> None:
    problem = problem_of(row)
    result = solved(solver, problem)
    check_placement(result.placement, problem)
    assert (result.placement.slots_per_rank() == problem.slots_per_rank).all()
    assert result.objective == pytest.approx(busiest_by_loops(result, problem), rel=1e-12)
    bound = busiest_rank_bound(problem.loads, n_slots=problem.n_slots, n_ranks=problem.n_ranks).sum()
    assert result.bound == bound >= problem.loads.sum() / problem.n_ranks * (1 - 1e-12)
    assert result.objective >= result.bound * (1 - 1e-9)
    assert result.gap == pytest.approx((result.objective - bound) / bound, abs=1e-9)
    assert (result.status == "optimal") == (result.gap <= 1e-9)
    assert result.time_s >= 0


@pytest.mark.parametrize("split", get_args(SplitName))
@pytest.mark.parametrize("solver", SOLVERS)
def test_split_and_name_are_passed_on(solver: SolverName, split: SplitName) -> None:
    spec = PlacementSpec(solver=solver, redundant=4, split=split, name="mine")
    plan = solve(problem_of(PROBLEMS[2]), spec).placement
    assert (plan.split, plan.name) == (split, "mine")
    assert solve(problem_of(PROBLEMS[2]), PlacementSpec(solver=solver, redundant=4)).placement.name == f"{solver}+4"


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_layer_is_solved_the_same_alone(solver: SolverName) -> None:
    whole = problem_of(PROBLEMS[10])
    alone = PlacementProblem(loads=whole.loads[:1], n_ranks=32, ranks_per_node=8, redundant=32, n_groups=8)
    plans = [solved(solver, problem).placement.expert_of_slot[0] for problem in (whole, alone)]
    assert plans[0].tolist() == plans[1].tolist()


def test_both_seeds_change_a_random_plan_and_no_other() -> None:
    for solver in SOLVERS:
        plans = {
            solved(solver, problem_of(PROBLEMS[7], seed), own).placement.expert_of_slot.tobytes()
            for seed, own in ((0, 0), (0, 1), (1, 0), (1, 0))
        }
        assert len(plans) == (3 if solver == "random" else 1)


def test_random_layers_differ() -> None:
    plan = solved("random", problem_of(PROBLEMS[7])).placement
    assert plan.expert_of_slot[0].tolist() != plan.expert_of_slot[1].tolist()
    assert set(plan.replica_counts().ravel().tolist()) == {1, 2}


def fingerprint() -> str:
    """Hash of all plans of all solvers on some problems."""
    digest = hashlib.sha256()
    for solver in SOLVERS:
        for row in PROBLEMS[2:6]:
            digest.update(solved(solver, problem_of(row, seed=5), seed=7).placement.expert_of_slot.tobytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_plans_are_the_same_in_another_process() -> None:
    code = "from tests.conformance.test_solvers import fingerprint; print(fingerprint())"
    for hash_seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.strip() == fingerprint()
