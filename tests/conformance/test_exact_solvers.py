"""Exact and large solvers through the facade: they agree where several are exact, and state their bound and limits."""

import numpy as np
import pytest

from placement.checker import check_placement
from placement.plan import Placement
from placement.problem import PlacementProblem
from placement.solve import SOLVERS, Solved, solve
from scenarios.errors import PlacementError, PlacementInfeasible
from scenarios.placement_specs import PlacementSpec, SolverName
from tests.oracles.placement_brute import least_busiest, most_that_stay

AFFINITY: tuple[SolverName, ...] = ("chain-exact", "alsa", "two-stage", "exflow", "ilp-affinity")


def problem_of(
    n_layers: int, n_experts: int, n_ranks: int, redundant: int = 0, current: Placement | None = None
) -> PlacementProblem:
    rng = np.random.default_rng([n_layers, n_experts, n_ranks])
    counts = np.floor(1000 * rng.dirichlet(np.full(n_experts, 0.4), size=(n_layers - 1, n_experts)))
    batches = np.round(100 * rng.lognormal(0, 1, (3, n_layers, n_experts)))
    return PlacementProblem(
        loads=batches.sum(axis=0),
        n_ranks=n_ranks,
        ranks_per_node=8,
        redundant=redundant,
        batch_loads=batches,
        transitions=counts,
        current=current,
    )


def solved(solver: SolverName, problem: PlacementProblem, time_limit: float = 20.0, moves: int | None = None) -> Solved:
    spec = {"solver": solver, "redundant": problem.redundant, "time_limit": f"{time_limit} s"}
    return solve(problem, PlacementSpec.model_validate({**spec, "moves": moves}))


@pytest.mark.slow
def test_exact_affinity_solvers_agree_with_trying_everything() -> None:
    problem = problem_of(2, 6, 3)
    assert problem.transitions is not None
    fewest = problem.transitions.sum() - most_that_stay(problem.transitions, 3)
    for solver in AFFINITY:
        found = solved(solver, problem)
        assert (found.objective_name, found.execution) == ("hops", "context-coherent")
        assert found.bound <= fewest * (1 + 1e-6)
        assert found.objective >= fewest * (1 - 1e-9)
        if solver in ("chain-exact", "exflow", "ilp-affinity"):
            assert found.objective == pytest.approx(fewest)
            assert found.gap <= 1e-4
    assert solved("chain-exact", problem).status == "optimal"


@pytest.mark.slow
@pytest.mark.parametrize("redundant", [0, 2])
def test_load_programmes_are_the_optimum_of_every_layer(redundant: int) -> None:
    problem = problem_of(2, 4, 2, redundant)
    assert problem.batch_loads is not None
    whole, mean = solved("ilp-load", problem), solved("ilp-saa", problem)
    n_slots = problem.n_slots
    assert whole.objective == pytest.approx(sum(least_busiest(w[None], n_slots, 2) for w in problem.loads))
    by_layer = [least_busiest(problem.batch_loads[:, layer], n_slots, 2) for layer in range(2)]
    assert mean.objective == pytest.approx(sum(by_layer))
    assert max(whole.gap, mean.gap) <= 1e-4
    assert (whole.objective_name, mean.objective_name, whole.execution) == ("load", "batch-load", "any")


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["exflow", "ilp-affinity", "ilp-load", "ilp-saa"])
def test_out_of_time_is_a_plan_with_a_gap(solver: SolverName) -> None:
    problem = problem_of(2, 16, 4, 0 if "load" not in solver else 4)
    found = solved(solver, problem, time_limit=1e-3)
    check_placement(found.placement, problem)
    assert found.status in ("stopped", "optimal")
    assert 0 <= found.bound <= found.objective


@pytest.mark.slow
def test_programmes_too_large_to_write_return_their_start_as_stopped() -> None:
    problem = problem_of(3, 48, 24)
    assert solved("ilp-affinity", problem).status == "stopped"
    assert solved("ilp-affinity", problem).objective <= solved("two-stage", problem).objective


@pytest.mark.parametrize("solver", AFFINITY)
def test_affinity_solvers_refuse_replicas(solver: SolverName) -> None:
    with pytest.raises(PlacementInfeasible, match="2 redundant slots are asked for; set redundant 0"):
        solved(solver, problem_of(2, 6, 2, 2))


def test_migrate_keeps_its_moves_and_gets_better_with_more() -> None:
    plain = problem_of(3, 8, 4, 4)
    current = solved("eplb", plain).placement
    shifted = problem_of(3, 8, 4, 4, current)
    assert shifted.batch_loads is not None
    shifted = PlacementProblem(
        loads=shifted.loads[:, ::-1],
        batch_loads=shifted.batch_loads[:, :, ::-1],
        n_ranks=4,
        ranks_per_node=8,
        redundant=4,
        current=current,
    )
    values = []
    for moves in (0, 3, 9, None):
        found = solved("migrate", shifted, moves=moves)
        values.append(found.objective)
        held = [set(row.tolist()) for row in current.expert_of_slot.reshape(12, -1)]
        new = [set(row.tolist()) for row in found.placement.expert_of_slot.reshape(12, -1)]
        assert moves is None or sum(len(after - before) for before, after in zip(held, new, strict=True)) <= moves
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_migrate_needs_the_slots_of_the_plan_in_force() -> None:
    current = solved("eplb", problem_of(2, 8, 4, 4)).placement
    with pytest.raises(PlacementError, match="has 12 slots a layer, the problem 8 with 2 on every rank"):
        solved("migrate", problem_of(2, 8, 4, 0, current))


def test_every_solver_of_this_suite_is_listed() -> None:
    assert set(AFFINITY) | {"ilp-load", "ilp-saa", "migrate"} <= set(SOLVERS)
