"""The load programme against trying everything, and what it returns when it is stopped."""

import numpy as np
import pytest

from placement.bounds import busiest_rank_bound
from placement.eplb import rebalance_experts
from placement.improvements import improvements
from placement.load_programmes import MoveLimit, busiest_load, solve_load
from scenarios.errors import PlacementError
from tests.oracles.placement_brute import least_busiest


def loads_of(seed: int, n_scenarios: int, n_experts: int) -> np.ndarray:
    return np.round(1000 * np.random.default_rng(seed).lognormal(0, 1, (n_scenarios, n_experts)))


def eplb_slots(loads: np.ndarray, n_slots: int, n_ranks: int) -> np.ndarray:
    slots = rebalance_experts(loads.sum(axis=0)[None], n_slots=n_slots, n_groups=1, n_nodes=1, n_ranks=n_ranks)
    return np.asarray(slots[0], dtype=np.intp)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_scenarios", "n_experts", "n_slots", "n_ranks"),
    [(1, 6, 6, 3), (1, 6, 6, 2), (2, 6, 6, 3), (1, 4, 6, 3), (2, 4, 6, 2)],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_programme_is_the_optimum(seed: int, n_scenarios: int, n_experts: int, n_slots: int, n_ranks: int) -> None:
    loads = loads_of(seed, n_scenarios, n_experts)
    found = solve_load(loads, eplb_slots(loads, n_slots, n_ranks), n_ranks, time_limit_s=30)
    assert found.status == "optimal"
    assert found.busiest == pytest.approx(least_busiest(loads, n_slots, n_ranks), rel=1e-9)
    assert found.bound == pytest.approx(found.busiest, rel=1e-5)
    assert busiest_load(loads, found.expert_of_slot, n_ranks) == found.busiest


def test_two_copies_on_one_rank_are_within_the_bound() -> None:
    # 10 + 0 | 9 + 1: only a rank that holds the heavy expert twice is this even.
    loads = np.array([[10.0, 9.0, 1.0]])
    found = solve_load(loads, np.array([0, 1, 0, 2]), 2, time_limit_s=10)
    assert found.busiest == 10
    assert found.bound <= 10


def test_a_stopped_programme_returns_a_plan_and_its_bound() -> None:
    loads = loads_of(1, 2, 24)
    start = eplb_slots(loads, 32, 8)
    found = solve_load(loads, start, 8, time_limit_s=1e-3)
    assert found.status == "time limit"
    counted = busiest_rank_bound(loads, n_slots=32, n_ranks=8).mean()
    assert counted * (1 - 1e-9) <= found.bound <= found.busiest <= busiest_load(loads, start, 8)


def test_few_moves_are_few_moves() -> None:
    loads = loads_of(2, 1, 8)
    current = np.arange(8)
    free = solve_load(loads, current, 4, time_limit_s=10)
    bounded = solve_load(loads, current, 4, time_limit_s=10, limit=MoveLimit(current=current, moves=2))
    moved = sum(set(current[2 * g : 2 * g + 2]) != set(bounded.expert_of_slot[2 * g : 2 * g + 2]) for g in range(4))
    assert moved <= 2
    assert free.busiest <= bounded.busiest < busiest_load(loads, current, 4)
    # The best single trade of two experts, tried one by one, is what two moves can do.
    trades = []
    for a in range(8):
        for b in range(a):
            slots = current.copy()
            slots[[a, b]] = slots[[b, a]]
            trades.append(busiest_load(loads, slots, 4))
    assert bounded.busiest == pytest.approx(min(trades))
    assert improvements(loads, current, 4, most_moves=2)[-1].busiest == pytest.approx(min(trades))


def test_a_start_beyond_the_moves_is_refused() -> None:
    with pytest.raises(PlacementError, match="moves 4 copies, the limit is 2"):
        solve_load(
            np.ones((1, 4)), np.array([2, 3, 0, 1]), 2, time_limit_s=1, limit=MoveLimit(current=np.arange(4), moves=2)
        )
