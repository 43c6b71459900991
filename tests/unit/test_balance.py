"""Swap searches against brute force and hand-made cases, and annealing's promises."""

import itertools

import numpy as np
import pytest

from placement.balance import balance, swapped, swapped_until_even
from placement.bounds import busiest_rank_bound
from placement.objectives import OBJECTIVES
from placement.plan import Placement, rank_loads
from placement.problem import PlacementProblem
from placement.saa import BatchLoadState, repointed, saa
from placement.solve import solve
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec


def problem(loads: np.ndarray, n_ranks: int, **more: object) -> PlacementProblem:
    return PlacementProblem(loads=loads, n_ranks=n_ranks, ranks_per_node=n_ranks, **more)  # type: ignore[arg-type]


def test_one_swap_by_hand() -> None:
    # ranks hold 9 + 1 and 5 + 3: exchanging 1 for 3 or 9 for 5 gives 12 and 6, 9 for 3 or 1 for 5 gives 14 and 4, so
    # nothing helps; 8 + 3 and 4 + 1 become 8 + 1 and 4 + 3
    speeds = np.ones(2)
    assert swapped_until_even(np.array([[0, 1, 2, 3]]), np.array([[9.0, 1, 5, 3]]), speeds).tolist() == [[0, 1, 2, 3]]
    loads = np.array([[8.0, 3, 4, 1]])
    swapped = Placement.from_slots(
        swapped_until_even(np.array([[0, 1, 2, 3]]), loads, speeds), 2, n_experts=4, name="swapped"
    )
    assert sorted(rank_loads(swapped, loads)[0].tolist()) == [7, 9]


def test_a_fast_rank_gets_the_heavy_experts() -> None:
    speeds = np.array([1.0, 3.0])
    loads = np.array([[30.0, 30, 10, 10]])
    plan = balance(problem(loads, 2, speeds=speeds), PlacementSpec(solver="balance"))
    assert rank_loads(plan, loads).tolist() == [[20, 60]]
    assert OBJECTIVES["load"].value(plan, problem(loads, 2, speeds=speeds)) == 20
    assert solve(problem(loads, 2, speeds=speeds), PlacementSpec(solver="balance")).status == "optimal"


def test_within_one_per_cent_of_the_bound_where_eplb_is_not() -> None:
    loads = np.exp(np.random.default_rng(0).normal(0, 0.7, (8, 256)))
    task = problem(loads, 32)
    bound = busiest_rank_bound(loads, n_slots=256, n_ranks=32).sum()
    assert OBJECTIVES["load"].value(balance(task, PlacementSpec(solver="balance")), task) < 1.005 * bound
    assert solve(task, PlacementSpec(solver="eplb")).objective > 1.03 * bound


def test_redivision_is_within_half_a_per_cent_of_the_bound_where_swaps_are_not() -> None:
    loads = np.exp(np.random.default_rng(1).normal(0, 0.7, (12, 32)))
    task = problem(loads, 8)
    bound = busiest_rank_bound(loads, n_slots=32, n_ranks=8).sum()
    spec = PlacementSpec(solver="balance")
    even, swaps = (OBJECTIVES["load"].value(solver(task, spec), task) for solver in (balance, swapped))
    assert even < 1.005 * bound < swaps


def best_mean_peak(steps: np.ndarray, n_ranks: int) -> float:
    """Smallest mean over steps of the busiest rank, over all ways to fill the ranks without replicas."""
    n_experts = steps.shape[1]
    room = n_experts // n_ranks
    orders = np.array(list(itertools.permutations(range(n_experts))))
    return float(steps[:, orders].reshape(len(steps), len(orders), n_ranks, room).sum(3).max(2).mean(0).min())


@pytest.mark.parametrize("seed", range(4))
def test_saa_finds_the_best_mean_of_peaks_of_small_cases(seed: int) -> None:
    steps = np.random.default_rng(seed).integers(0, 30, (5, 1, 6)).astype(float)
    task = problem(steps.sum(axis=0), 3, batch_loads=steps)
    plan = saa(task, PlacementSpec(solver="saa"))
    assert OBJECTIVES["batch-load"].value(plan, task) == pytest.approx(best_mean_peak(steps[:, 0], 3))


def test_experts_that_peak_together_are_parted() -> None:
    # experts 0 and 1 take turns with 2 and 3; all means are equal, so that only the steps can tell
    steps = np.array([[[10.0, 10, 0, 0]], [[0, 0, 10, 10]]])
    plan = saa(problem(steps.sum(axis=0), 2, batch_loads=steps), PlacementSpec(solver="saa"))
    by_rank = plan.expert_of_slot.reshape(2, 2).tolist()
    assert {0, 1} not in [set(rank) for rank in by_rank]
    assert OBJECTIVES["batch-load"].value(plan, problem(steps.sum(axis=0), 2, batch_loads=steps)) == 10


def test_a_spare_copy_moves_to_the_hot_expert() -> None:
    # two of the three copies of cold expert 3 go to hot expert 0: its share falls from 90 to 30
    slots = np.array([[0, 3, 1, 3, 2, 3]])
    loads = np.array([[[90.0, 10, 10, 3]]])
    better = repointed(slots, loads, np.ones(3))
    assert (better == 0).sum() == 3
    before, after = (BatchLoadState(s, loads, np.ones(3)).cost()[0] for s in (slots, better))
    assert (before, after) == (91, 40)


def test_flexmoe_and_smartmoe_keep_the_slots_of_the_current_plan() -> None:
    loads = np.array([[90.0, 10, 10, 3]])
    current = Placement.from_slots([[0, 3, 1, 3, 2, 3]], 3, n_experts=4, name="now")
    task = problem(loads, 3, redundant=2, current=current)
    peaks = {}
    for solver in ("flexmoe", "smartmoe"):
        result = solve(task, PlacementSpec(solver=solver, redundant=2))
        peaks[solver] = result.objective
        if solver == "smartmoe":
            assert sorted(result.placement.expert_of_slot[0].tolist()) == [0, 1, 2, 3, 3, 3]
    assert peaks["flexmoe"] < 0.6 * peaks["smartmoe"]
    with pytest.raises(PlacementError, match=r"has 6 slots a layer, the problem 9.*give redundant 2"):
        solve(problem(loads, 3, redundant=5, current=current), PlacementSpec(solver="flexmoe", redundant=5))
