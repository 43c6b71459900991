"""Re-planning near the plan in force: labels that keep most in place, moves counted, budgets kept."""

from itertools import pairwise

import numpy as np
import pytest

from placement.improvements import improvements
from placement.load_programmes import MoveLimit, busiest_load, solve_load
from placement.migration import moved_copies, relabelled, replan
from scenarios.errors import PlacementError


def test_moves_are_copies_on_ranks_that_had_none() -> None:
    current = np.array([[0, 1, 2, 3]])
    assert moved_copies(current, np.array([[1, 0, 3, 2]]), 2, 4).tolist() == [0]
    assert moved_copies(current, np.array([[0, 2, 1, 3]]), 2, 4).tolist() == [2]
    assert moved_copies(current, np.array([[2, 3, 0, 1]]), 2, 4).tolist() == [4]


def test_relabelling_undoes_a_renaming_of_ranks_and_keeps_slots() -> None:
    current = np.array([[0, 1, 2, 3, 4, 5]])
    assert relabelled(current, np.array([[5, 4, 1, 0, 2, 3]]), 3, 6).tolist() == current.tolist()
    # The pair (3, 1) goes where 3 was or 1 was; 0 and 5 stay, each in its slot.
    assert relabelled(current, np.array([[5, 4, 3, 1, 2, 0]]), 3, 6)[0, 4:].tolist() == [4, 5]


def test_relabelling_never_moves_more_and_keeps_the_groups() -> None:
    rng = np.random.default_rng(0)
    current, plan = (np.stack([rng.permutation(12) for _ in range(4)]) for _ in range(2))
    near = relabelled(current, plan, 4, 12)
    assert (moved_copies(current, near, 4, 12) <= moved_copies(current, plan, 4, 12)).all()
    for before, after in zip(plan, near, strict=True):
        assert sorted(map(sorted, before.reshape(4, 3).tolist())) == sorted(map(sorted, after.reshape(4, 3).tolist()))


@pytest.mark.parametrize("seed", range(4))
def test_steps_only_improve_within_the_moves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    loads = rng.lognormal(0, 1, (3, 8)) * 100
    current = np.concatenate([rng.permutation(8), [0, 1, 2, 3]])
    steps = improvements(loads, current, 4, most_moves=5)
    assert steps[0].expert_of_slot.tolist() == current.tolist()
    for before, after in pairwise(steps):
        assert after.busiest < before.busiest
    for step in steps:
        assert step.busiest == pytest.approx(busiest_load(loads, step.expert_of_slot, 4))
        assert step.moves == moved_copies(current[None], step.expert_of_slot[None], 4, 8)[0] <= 5
        assert set(step.expert_of_slot.tolist()) == set(range(8))


def best_single_change(loads: np.ndarray, current: np.ndarray, n_ranks: int) -> float:
    """Lowest busiest load after one trade or one turned spare slot, all tried by loops."""
    room = len(current) // n_ranks
    best = busiest_load(loads, current, n_ranks)
    for slot in range(len(current)):
        for other in range(len(current)):
            trade = current.copy()
            trade[[slot, other]] = trade[[other, slot]]
            best = min(best, busiest_load(loads, trade, n_ranks))
        for expert in range(loads.shape[1]):
            turn = current.copy()
            turn[slot] = expert
            held = turn[slot // room * room : slot // room * room + room].tolist()
            if set(turn.tolist()) == set(range(loads.shape[1])) and held.count(expert) == 1:
                best = min(best, busiest_load(loads, turn, n_ranks))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_improves_any_more_no_single_change_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    loads = rng.lognormal(0, 1, (2, 6)) * 100
    last = improvements(loads, np.array([0, 1, 2, 3, 4, 5, 0, 2]), 4, most_moves=99)[-1]
    assert best_single_change(loads, last.expert_of_slot, 4) == pytest.approx(last.busiest)


def test_improvements_stay_above_the_exact_optimum_of_as_many_moves() -> None:
    loads = np.random.default_rng(7).lognormal(0, 1, (1, 8)) * 100
    current = np.arange(8)
    for moves in (2, 4):
        exact = solve_load(loads, current, 4, time_limit_s=10, limit=MoveLimit(current=current, moves=moves))
        found = improvements(loads, current, 4, most_moves=moves)[-1]
        assert exact.bound * (1 - 1e-9) <= found.busiest <= busiest_load(loads, current, 4)


def test_a_budget_is_spent_on_the_layers_that_need_it() -> None:
    even = np.full((1, 4), 10.0)
    uneven = np.array([[40.0, 40.0, 1.0, 1.0]])
    found = replan(np.stack([even, uneven], axis=1), np.tile(np.arange(4), (2, 1)), 2, most_moves=2)
    assert found.moves.tolist() == [0, 2]
    assert found.busiest == 20 + 41
    assert replan(np.stack([even, uneven], axis=1), np.tile(np.arange(4), (2, 1)), 2, most_moves=1).moves.sum() == 0


def test_a_move_that_costs_more_than_it_saves_is_not_made() -> None:
    uneven = np.array([[[40.0, 40.0, 1.0, 1.0]]])
    current = np.arange(4)[None]
    assert replan(uneven, current, 2, most_moves=4, tokens_per_move=19.0).moves.tolist() == [2]  # saves 39 by 2 moves
    assert replan(uneven, current, 2, most_moves=4, tokens_per_move=20.0).moves.tolist() == [0]
    with pytest.raises(PlacementError, match="-1 moves"):
        replan(uneven, current, 2, most_moves=-1)
