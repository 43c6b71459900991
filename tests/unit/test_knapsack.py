"""The multiple-choice knapsack and its three uses, against trying everything and closed forms."""

from itertools import product

import numpy as np
import pytest

from placement.budgets import allocated, bit_widths, tier_residency
from placement.knapsack import AtLeast, cheapest_by_hull, choose
from placement.problem import SharedSlots
from scenarios.errors import PlacementError, PlacementInfeasible


def cheapest(costs: np.ndarray, weights: np.ndarray, limits: np.ndarray, at_least: tuple[AtLeast, ...] = ()) -> float:
    """The least cost over all choices, by loops."""
    best = float("inf")
    for options in product(range(costs.shape[1]), repeat=len(costs)):
        taken = [sum(weights[r, i, o] for i, o in enumerate(options)) for r in range(len(limits))]
        enough = all(sum(options[i] == rule.option for i in rule.items) >= rule.count for rule in at_least)
        if enough and all(t <= limit for t, limit in zip(taken, limits, strict=True)):
            best = min(best, sum(costs[i, o] for i, o in enumerate(options)))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_one_limit_is_solved_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, weights = rng.random((5, 3)), rng.integers(0, 6, (1, 5, 3)).astype(float)
    costs[0, 2], weights[0, 0, 2] = np.inf, 9
    limit = weights[0].min(axis=1).sum() + rng.integers(1, 8)
    found = choose(costs, weights, np.array([limit + 0.7]))
    assert found.cost == pytest.approx(cheapest(costs, weights, np.array([limit])))
    assert found.status == "optimal"
    assert weights[0, np.arange(5), found.option].sum() <= limit
    assert found.relaxed - 1e-9 <= found.bound <= found.cost
    greedy, relaxed = cheapest_by_hull(costs, weights[0], float(limit))
    assert greedy is not None
    assert relaxed <= found.cost + 1e-12
    assert costs[np.arange(5), greedy].sum() >= found.cost - 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_limits_that_cannot_bind_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, weights = rng.random((5, 3)), rng.integers(1, 6, (2, 5, 3)) * 4.0
    limits = np.array([weights[0].min(axis=1).sum() + rng.integers(0, 20), weights[1].max(axis=1).sum() + seed])
    found = choose(costs, weights, limits)
    assert found.cost == pytest.approx(cheapest(costs, weights, limits))
    assert found.gap == pytest.approx(0, abs=1e-9)
    free = choose(costs, weights, weights.max(axis=2).sum(axis=1))
    assert free.cost == pytest.approx(costs.min(axis=1).sum())


def test_a_limit_between_two_multiples_is_the_lower_one() -> None:
    # Items of 6 bytes each, 20 bytes: three fit, and the relaxation must not sell the third of a fourth.
    costs, weights = np.array([[4.0, 0], [3, 0], [2, 0], [1, 0]]), np.full((1, 4, 2), 6.0) * [0, 1]
    found = choose(costs, weights, np.array([20.0]))
    assert (found.cost, found.relaxed, found.status) == (1.0, 1.0, "optimal")


def test_the_hull_bound_is_the_relaxation() -> None:
    # Half of the step from (0, 10) to (4, 2) fits: 10 - 8 / 2. The option (2, 9) lies above the hull.
    greedy, relaxed = cheapest_by_hull(np.array([[10.0, 9.0, 2.0]]), np.array([[0.0, 2.0, 4.0]]), 2.0)
    assert relaxed == 6.0
    assert greedy is not None
    assert greedy.tolist() == [0]


def test_several_limits_and_rules_are_solved_exactly() -> None:
    rng = np.random.default_rng(3)
    costs, weights = rng.random((5, 3)), rng.integers(1, 5, (2, 5, 3)).astype(float)
    limits = np.array([13.0, 14.0])
    rules = (AtLeast(items=(0, 1, 2), option=1, count=2), AtLeast(items=(3, 4), option=2, count=1))
    assert choose(costs, weights, limits, at_least=rules).cost == pytest.approx(cheapest(costs, weights, limits, rules))


def test_what_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(PlacementInfeasible, match="take 4 of resource 0, 3 are there: 1 short"):
        choose(np.ones((2, 2)), np.full((1, 2, 2), 2.0), np.array([3.0]))
    with pytest.raises(PlacementInfeasible, match="item 1 has no option"):
        choose(np.array([[1.0], [np.inf]]), np.zeros((1, 2, 1)), np.array([1.0]))
    with pytest.raises(PlacementInfeasible, match="no choice keeps the limits together"):
        choose(
            np.ones((2, 2)), np.ones((1, 2, 2)), np.array([2.0]), at_least=[AtLeast(items=(0, 1), option=0, count=3)]
        )
    with pytest.raises(PlacementError, match="do not fit"):
        choose(np.ones((2, 2)), np.ones((2, 2, 2)), np.array([2.0]))


def test_spare_slots_go_where_they_save_most() -> None:
    costs = np.array([[10.0, 6.0, 5.0], [10.0, 9.5, 9.4], [10.0, 11.0, 12.0]])
    options = [allocated(costs, SharedSlots(total=n, sizes=(0, 1, 2))).option.tolist() for n in (0, 1, 2, 9)]
    assert options == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 2, 0]]


@pytest.mark.parametrize("mean_bits", [1.5, 2.0, 2.5])
def test_a_shared_budget_of_bits_is_never_worse_than_one_for_each_block(mean_bits: float) -> None:
    rng = np.random.default_rng(4)
    errors = np.array([0.6, 0.15, 0.04])
    losses = rng.lognormal(0, 1, (4, 8, 1)) * rng.lognormal(0, 1, (4, 1, 1)) * errors
    bits = np.array([1.0, 2.0, 3.0])
    shared = bit_widths(losses, bits, mean_bits, one_of_each=(1, 2))
    alone = [bit_widths(block[None], bits, mean_bits, one_of_each=(1, 2)).cost for block in losses]
    assert shared.cost <= sum(alone)
    assert bits[shared.option].sum() <= mean_bits * 32
    assert all({1, 2} <= set(shared.option[8 * b : 8 * b + 8].tolist()) for b in range(4))
    assert shared.cost <= shared.relaxed * 1.0005  # the limit that the project sets itself: 0.05 %


def test_tiers_of_equal_experts_are_filled_by_frequency() -> None:
    often = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    found = tier_residency(often[:, None] * np.array([1.0, 10.0]), np.ones(5), np.array([2.0, 3.0]))
    assert found.option.tolist() == [0, 1, 0, 1, 1]
    assert found.cost == 9 + 60


def test_tiers_of_unequal_experts_are_solved_exactly() -> None:
    rng = np.random.default_rng(6)
    sizes, often = rng.choice([1.0, 2.0, 4.0], 6), rng.random(6)
    costs = often[:, None] * np.array([1.0, 3.0, 9.0])
    free = np.array([4.0, 5.0, sizes.sum()])
    weights = np.stack([np.where(np.arange(3) == tier, sizes[:, None], 0.0) for tier in range(3)])
    assert tier_residency(costs, sizes, free).cost == pytest.approx(cheapest(costs, weights, free))


def test_tiers_that_are_too_small_are_infeasible() -> None:
    with pytest.raises(PlacementInfeasible, match=r"3\.00 GiB, the 2 tiers have 2\.50 GiB: 0\.50 GiB short"):
        tier_residency(np.ones((3, 2)), np.full(3, 2.0**30), np.array([2.0, 0.5]) * 2**30)
