"""Bounds on distinct parts per token: never above the optimum found by trying everything; new ones above the old."""

from collections.abc import Callable

import numpy as np
import pytest

from placement.destination_bounds import (
    companions_bound,
    destination_bound,
    pairs_bound,
    partition_bound,
    quick_bound,
    visits_per_token,
)
from scenarios.errors import PlacementError, PlacementInfeasible
from tests.oracles.placement_brute import equal_splits, fewest_visits, fewest_visits_with_replicas


def tokens_of(seed: int, n_tokens: int, n_experts: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(n_experts, 0.7), size=3) * 0.9 + 0.1 / n_experts
    return np.stack([rng.choice(n_experts, k, replace=False, p=weights[t % 3]) for t in range(n_tokens)])


@pytest.mark.parametrize(
    ("n_experts", "n_parts", "k"), [(6, 3, 2), (6, 2, 3), (8, 4, 3), (8, 2, 4), (8, 4, 4), (6, 6, 2)]
)
@pytest.mark.parametrize("seed", range(4))
def test_no_bound_is_above_the_optimum(seed: int, n_experts: int, n_parts: int, k: int) -> None:
    experts = tokens_of(seed, 25, n_experts, k)
    best = fewest_visits(experts, n_experts, n_parts)
    pairs = pairs_bound(experts, n_experts=n_experts, n_parts=n_parts)
    companions = companions_bound(experts, n_experts=n_experts, n_parts=n_parts, n_slots=n_experts)
    partition = partition_bound(experts, n_experts=n_experts, n_parts=n_parts)
    assert max(pairs, companions, partition) <= best + 1e-9
    chosen = destination_bound(experts, n_experts=n_experts, n_parts=n_parts, n_slots=n_experts)
    assert chosen == max(pairs, partition)
    enumerated_none = destination_bound(experts, n_experts=n_experts, n_parts=n_parts, n_slots=n_experts, most_sets=0)
    assert enumerated_none == max(pairs, companions)


def test_partition_bound_is_the_optimum_where_two_groups_never_meet() -> None:
    experts = np.array([[0, 1, 2], [3, 4, 5], [0, 2, 1]] * 4)
    assert partition_bound(experts, n_experts=6, n_parts=2) == pytest.approx(1.0)
    assert companions_bound(experts, n_experts=6, n_parts=2, n_slots=6) == pytest.approx(1.0)


def test_bounds_agree_with_a_closed_form_for_uniform_pairs() -> None:
    # All 28 pairs of 8 experts once: any split into 4 pairs keeps 4 tokens in one part, the others visit two.
    experts = np.array([[e, f] for e in range(8) for f in range(e)])
    assert partition_bound(experts, n_experts=8, n_parts=4) == pytest.approx(2 - 4 / 28)
    assert companions_bound(experts, n_experts=8, n_parts=4, n_slots=8) == pytest.approx(2 - 4 / 28)


@pytest.mark.slow
@pytest.mark.parametrize(("room", "k"), [(3, 2), (3, 3), (4, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_with_replicas_holds_for_every_choice_of_copies(seed: int, room: int, k: int) -> None:
    experts = tokens_of(seed, 20, 6, k)
    best = fewest_visits_with_replicas(experts, 6, 3, room)
    assert 1 <= companions_bound(experts, n_experts=6, n_parts=3, n_slots=3 * room) <= best + 1e-9


def test_replicas_never_raise_the_bound() -> None:
    experts = tokens_of(3, 60, 8, 3)
    bounds = [companions_bound(experts, n_experts=8, n_parts=4, n_slots=n) for n in (8, 12, 16)]
    assert bounds == sorted(bounds, reverse=True)


def test_renaming_experts_changes_no_bound() -> None:
    experts = tokens_of(4, 60, 8, 3)
    names = np.random.default_rng(0).permutation(8)
    for bound in (
        lambda e: pairs_bound(e, n_experts=8, n_parts=4),
        lambda e: partition_bound(e, n_experts=8, n_parts=4),
        lambda e: companions_bound(e, n_experts=8, n_parts=4, n_slots=8),
    ):
        assert bound(experts) == pytest.approx(bound(names[experts]), rel=1e-6)


def test_visits_are_counted_as_sets_count_them() -> None:
    experts = tokens_of(5, 40, 6, 3)
    for parts in list(equal_splits(6, 3))[::4]:
        expected = np.mean([len({parts[e] for e in token}) for token in experts.tolist()])
        assert visits_per_token(experts, np.array(parts)) == pytest.approx(expected)


def test_more_experts_than_a_part_holds_need_more_parts() -> None:
    experts = np.array([[0, 1, 2, 3, 4]] * 3)
    assert companions_bound(experts, n_experts=8, n_parts=4, n_slots=8) == 3.0


@pytest.mark.slow
def test_the_bound_on_a_clustered_trace_is_close() -> None:
    """32 experts on 8 ranks, top-4 from hidden groups of four: optimum known to be at most the hidden split's."""
    rng = np.random.default_rng(1)
    names = rng.permutation(32)
    own = rng.integers(0, 8, 1500)[:, None] * 4
    draws = np.where(rng.random((1500, 4)) < 0.8, own + np.arange(4), rng.integers(0, 32, (1500, 4)))
    experts = names[np.stack([d for d in draws if len(set(d.tolist())) == 4])]
    hidden = np.empty(32, np.intp)
    hidden[names] = np.arange(32) // 4
    planned = visits_per_token(experts, hidden)
    partition = partition_bound(experts, n_experts=32, n_parts=8)
    companions = companions_bound(experts, n_experts=32, n_parts=8, n_slots=32)
    assert partition == pytest.approx(planned, rel=1e-6)
    assert pairs_bound(experts, n_experts=32, n_parts=8) < companions <= partition + 1e-6


@pytest.mark.parametrize("bound", [destination_bound, quick_bound])
def test_all_experts_on_one_part_are_one_visit(bound: Callable[..., float]) -> None:
    experts = np.argsort(np.random.default_rng(0).random((30, 64)), axis=1)[
        :, :6
    ]  # one set of 64: nothing to enumerate
    assert bound(experts, n_experts=64, n_parts=1, n_slots=64) == 1.0


def test_malformed_tokens_are_refused() -> None:
    with pytest.raises(PlacementError, match="twice"):
        partition_bound(np.array([[1, 1]]), n_experts=4, n_parts=2)
    with pytest.raises(PlacementError, match=r"0\.\.5 of tokens are not within 0\.\.3"):
        companions_bound(np.array([[0, 5]]), n_experts=4, n_parts=2, n_slots=4)
    with pytest.raises(PlacementInfeasible, match="5 slots for 4 experts"):
        companions_bound(np.array([[0, 1]]), n_experts=4, n_parts=2, n_slots=5)
    with pytest.raises(PlacementInfeasible, match="4 experts do not divide over 3 parts"):
        partition_bound(np.array([[0, 1]]), n_experts=4, n_parts=3)
