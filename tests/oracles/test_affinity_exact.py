"""Exact affinity: dynamic programme = transport programme = ExFlow's = trying everything; bounds above all."""

import numpy as np
import pytest

from placement.affinity import alternating_assignment, tokens_that_stay
from placement.affinity_bounds import affinity_bound, matching_bound, spectral_bound
from placement.affinity_programmes import FormName, solve_affinity, transport_programme
from placement.alsa import alsa
from placement.chain import best_chain, chain_exact, n_splits
from placement.programmes import solve_programme
from scenarios.errors import PlacementError, PlacementInfeasible
from tests.oracles.placement_brute import equal_splits, most_that_stay


def counts_of(seed: int, n_layers: int, n_experts: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.floor(1000 * rng.dirichlet(np.full(n_experts, 0.4), size=(n_layers - 1, n_experts)))


CASES = [(0, 3, 4, 2), (1, 3, 4, 2), (2, 2, 6, 3), (3, 2, 6, 2), (4, 3, 4, 4)]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "n_layers", "n_experts", "n_ranks"), CASES)
def test_three_exact_solvers_agree_with_trying_everything(
    seed: int, n_layers: int, n_experts: int, n_ranks: int
) -> None:
    counts = counts_of(seed, n_layers, n_experts)
    best = most_that_stay(counts, n_ranks)
    ranks, value = chain_exact(counts, n_ranks)
    assert value == best
    assert tokens_that_stay(counts, ranks) == best
    start = np.tile(np.arange(n_experts) // (n_experts // n_ranks), (n_layers, 1))
    forms: tuple[FormName, ...] = ("transport", "exflow")
    for form in forms:
        found = solve_affinity(counts, n_ranks, start, form=form, time_limit_s=30)
        assert (found.status, found.stay) == ("optimal", best)
        assert found.bound == pytest.approx(best, rel=1e-6)
        assert all(np.bincount(row).tolist() == [n_experts // n_ranks] * n_ranks for row in found.rank_of_expert)


@pytest.mark.parametrize("seed", range(6))
def test_bounds_are_above_the_optimum_and_heuristics_below(seed: int) -> None:
    counts = counts_of(seed, 4, 6)
    _, best = chain_exact(counts, 3)
    for rounds in (0, 1, 4):
        assert sum(matching_bound(pair, 3, square_rounds=rounds) for pair in counts) >= best * (1 - 1e-9)
    assert sum(spectral_bound(pair, 3) for pair in counts) >= best * (1 - 1e-9)
    assert affinity_bound(counts, 3) >= best * (1 - 1e-9)
    found = tokens_that_stay(counts, alsa(counts, 3, np.random.default_rng(seed)))
    assert 0.9 * best <= found <= best


def test_squares_close_a_gap_that_matching_leaves() -> None:
    # The wheel 0-1-2-3-0: every expert e goes to e and to e + 1. A matching keeps all, but ranks of two keep 6 of 8.
    counts = np.eye(4) + np.roll(np.eye(4), 1, axis=1)
    assert matching_bound(counts, 2, square_rounds=0) == pytest.approx(8)
    assert chain_exact(counts[None], 2)[1] == 6
    assert matching_bound(counts, 2, square_rounds=4) == pytest.approx(6)


def test_the_transport_relaxation_lies_between_optimum_and_matching_bound() -> None:
    counts = counts_of(7, 3, 6)
    relaxed = solve_programme(transport_programme(counts, 3)[0], time_limit_s=20, relaxed=True)
    matching = sum(matching_bound(c, 3, square_rounds=0) for c in counts)
    assert chain_exact(counts, 3)[1] <= relaxed.bound <= matching * (1 + 1e-6)


def test_a_load_term_is_part_of_the_optimum() -> None:
    rng = np.random.default_rng(5)
    counts, loads = counts_of(5, 2, 4), rng.integers(1, 900, (2, 4)).astype(float)
    ranks, value = chain_exact(counts, 2, loads=loads, load_weight=0.7)
    best = -np.inf
    splits = [np.array(s) for s in equal_splits(4, 2)]
    for here in splits:
        for there in splits:
            for named in (there, 1 - there):
                busiest = sum(max(w[s == 0].sum(), w[s == 1].sum()) for w, s in zip(loads, (here, named), strict=True))
                best = max(best, tokens_that_stay(counts, np.stack([here, named])) - 0.7 * busiest)
    assert value == pytest.approx(best)
    busiest = sum(np.bincount(r, weights=w).max() for r, w in zip(ranks, loads, strict=True))
    assert tokens_that_stay(counts, ranks) - 0.7 * busiest == pytest.approx(best)


def test_candidates_named_otherwise_give_the_same_chain() -> None:
    counts = counts_of(8, 3, 6)
    rng = np.random.default_rng(0)
    splits = np.stack([[rng.permutation(np.repeat(np.arange(3), 2)) for _ in range(5)] for _ in range(3)])
    names = np.array([2, 0, 1])
    assert best_chain(counts, splits, 3)[1] == best_chain(counts, names[splits], 3)[1]


def test_renaming_experts_changes_no_value() -> None:
    counts = counts_of(9, 3, 8)
    order = [np.random.default_rng(layer).permutation(8) for layer in range(3)]
    renamed = np.stack([c[np.ix_(a, b)] for c, a, b in zip(counts, order[:-1], order[1:], strict=True)])
    assert chain_exact(counts, 4)[1] == chain_exact(renamed, 4)[1]
    assert affinity_bound(counts, 4) == pytest.approx(affinity_bound(renamed, 4), rel=1e-6)


def test_alternating_assignment_never_loses() -> None:
    counts = counts_of(10, 6, 12)
    rng = np.random.default_rng(1)
    for _ in range(5):
        start = np.stack([rng.permutation(np.repeat(np.arange(4), 3)) for _ in range(6)])
        assert tokens_that_stay(counts, alternating_assignment(counts, start, 4)) >= tokens_that_stay(counts, start)


def test_a_stopped_programme_returns_its_start_and_a_bound() -> None:
    counts = counts_of(11, 3, 8)
    start = alsa(counts, 4, np.random.default_rng(0))
    found = solve_affinity(counts, 4, start, form="exflow", time_limit_s=1e-3)
    assert found.status == "time limit"
    assert tokens_that_stay(counts, start) <= found.stay <= chain_exact(counts, 4)[1] <= found.bound


def test_what_cannot_be_solved_says_why() -> None:
    assert n_splits(8, 4) == 105
    with pytest.raises(PlacementInfeasible, match="2627625 ways"):
        chain_exact(counts_of(0, 2, 16), 4)
    with pytest.raises(PlacementInfeasible, match="6 experts do not divide over 4 ranks"):
        alsa(counts_of(0, 2, 6), 4, np.random.default_rng(0))
    with pytest.raises(PlacementError, match="negative"):
        affinity_bound(-np.ones((1, 4, 4)), 2)
