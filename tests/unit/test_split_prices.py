"""Dual values of the best split: hand cases, strong duality, and what a replica really brings."""

from __future__ import annotations

import numpy as np
import pytest

from placement.plan import Placement
from placement.split_prices import split_prices
from scenarios.errors import PlacementError
from tests.small import random_placement


def plan_of(slots: list[list[int]], n_ranks: int) -> Placement:
    return Placement.from_slots(slots, n_ranks, n_experts=1 + max(map(max, slots)), name="by hand")


def test_one_busy_rank_has_the_whole_price() -> None:
    # Ranks hold (0, 1), (2, 3): 10 + 2 against 4 + 4 tokens.
    prices = split_prices(plan_of([[0, 1, 2, 3]], 2), np.array([[10.0, 2, 4, 4]]))
    assert prices.busiest.tolist() == [12]
    assert prices.rank_price.tolist() == [[1, 0]]
    assert prices.expert_price.tolist() == [[1, 1, 0, 0]]
    assert prices.relief(0).tolist() == [[0, 1], [0, 1], [0, 0], [0, 0]]


def test_a_replica_spreads_the_price_over_the_ranks_it_joins() -> None:
    # Expert 0 lies on both ranks: 12 + 8 tokens are levelled to 10 and 10, a token more anywhere costs a half.
    prices = split_prices(plan_of([[0, 1, 0, 2]], 2), np.array([[10.0, 2, 8]]))
    assert prices.busiest == pytest.approx([10])
    assert prices.rank_price == pytest.approx(np.array([[0.5, 0.5]]))
    assert prices.expert_price == pytest.approx(np.array([[0.5, 0.5, 0.5]]))
    assert prices.relief(0) == pytest.approx(np.zeros((3, 2)))


def test_only_ranks_that_cannot_be_relieved_bind() -> None:
    # Expert 0 on ranks 0 and 1, expert 3 alone on rank 2 with more than the two can hold: only rank 2 binds.
    prices = split_prices(plan_of([[0, 1, 0, 2, 3, 4]], 3), np.array([[6.0, 1, 1, 20, 2]]))
    assert prices.busiest == pytest.approx([22])
    assert prices.rank_price == pytest.approx(np.array([[0, 0, 1]]))
    assert prices.relief(0)[3] == pytest.approx([1, 1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_prices_are_dual_feasible_and_reach_the_busiest_load(seed: int) -> None:
    plan = random_placement(3, 12, 4, 20, seed=seed)
    loads = np.random.default_rng(seed).integers(0, 100, (3, 12)).astype(np.float64)
    prices = split_prices(plan, loads)
    assert prices.rank_price.sum(axis=1) == pytest.approx(np.ones(3))
    for layer in range(3):
        for expert, rank in zip(plan.expert_of_slot[layer], plan.rank_of_slot[layer], strict=True):
            assert prices.expert_price[layer, expert] <= prices.rank_price[layer, rank] + 1e-9
        assert prices.busiest[layer] == pytest.approx((prices.expert_price[layer] * loads[layer]).sum())
        assert prices.busiest[layer] >= loads[layer].sum() / 4 - 1e-9


def test_one_token_more_and_one_replica_more_cost_what_the_prices_say() -> None:
    plan = random_placement(1, 10, 3, 14, seed=4)
    loads = np.random.default_rng(4).integers(20, 200, (1, 10)).astype(np.float64)
    before = split_prices(plan, loads)
    for expert in range(10):
        heavier = loads.copy()
        heavier[0, expert] += 1e-3
        rise = split_prices(plan, heavier).busiest[0] - before.busiest[0]
        assert rise == pytest.approx(1e-3 * before.expert_price[0, expert], rel=1e-3, abs=1e-9)
    expert, rank = np.unravel_index(before.relief(0).argmax(), (10, 3))
    more = Placement(
        expert_of_slot=np.insert(plan.expert_of_slot, end := int((plan.rank_of_slot <= rank).sum()), expert, axis=1),
        rank_of_slot=np.insert(plan.rank_of_slot, end, rank, axis=1),
        n_experts=10,
        n_ranks=3,
        name="one more",
    )
    fall = before.busiest[0] - split_prices(more, loads).busiest[0]
    assert 0 < fall <= before.relief(0)[expert, rank] * loads[0, expert] + 1e-9


def test_loads_of_another_model_are_refused() -> None:
    with pytest.raises(PlacementError, match=r"loads have shape \(1, 3\), the plan is for 1 layers of 4"):
        split_prices(plan_of([[0, 1, 2, 3]], 2), np.ones((1, 3)))
