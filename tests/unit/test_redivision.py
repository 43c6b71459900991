"""Re-dividing two ranks' slots: exact for two ranks, never worse, and copies stay apart."""

import numpy as np
import pytest

import placement.redivision as redivision
from placement.bounds import busiest_rank_bound
from placement.load_programmes import busiest_load
from placement.redivision import best_redivided, evened, redivided
from tests.oracles.placement_brute import least_busiest


@pytest.mark.parametrize("seed", range(4))
def test_two_ranks_are_divided_optimally(seed: int) -> None:
    loads = np.random.default_rng(seed).lognormal(0, 1, 8)
    found = redivided(loads, np.arange(8), 2).slots
    assert busiest_load(loads[None], found, 2) == pytest.approx(least_busiest(loads[None], 8, 2))


@pytest.mark.parametrize("n_ranks", [2, 4, 8])
def test_never_worse_and_no_expert_lost(n_ranks: int) -> None:
    rng = np.random.default_rng(n_ranks)
    loads = rng.lognormal(0, 1, 40)
    slots = np.concatenate([rng.permutation(40), np.arange(8)])
    found = redivided(loads, slots, n_ranks).slots
    assert busiest_load(loads[None], found, n_ranks) <= busiest_load(loads[None], slots, n_ranks)
    assert sorted(found.tolist()) == sorted(slots.tolist())


def test_two_copies_of_an_expert_stay_on_two_ranks() -> None:
    loads = np.array([8.0, 7.0, 1.0])
    found = redivided(loads, np.array([0, 1, 0, 2]), 2).slots
    assert sorted(map(sorted, found.reshape(2, 2).tolist())) == [[0, 1], [0, 2]]


def test_the_busiest_of_many_slots_is_still_swapped() -> None:
    # Twelve slots a rank: too many divisions to try all, but the swaps are among those tried.
    loads = np.concatenate([np.full(12, 2.0), np.full(12, 1.0)])
    found = redivided(loads, np.arange(24), 2).slots
    assert busiest_load(loads[None], found, 2) == 18


def test_more_starts_are_never_worse_and_always_the_same() -> None:
    loads = np.random.default_rng(3).lognormal(0, 1, 24)
    one, many = redivided(loads, np.arange(24), 6).slots, best_redivided(loads, np.arange(24), 6)
    assert busiest_load(loads[None], many, 6) <= busiest_load(loads[None], one, 6)
    assert many.tolist() == best_redivided(loads, np.arange(24), 6).tolist()


def in_order(n_layers: int, n_experts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Skewed loads and the plan of experts in order."""
    loads = np.random.default_rng(seed).lognormal(0, 1, (n_layers, n_experts))
    return loads, np.tile(np.arange(n_experts), (n_layers, 1))


def test_small_layers_are_evened_to_the_optimum() -> None:
    loads, slots = in_order(2, 8, seed=0)
    found = evened(slots, loads, 2, busiest_rank_bound(loads, n_slots=8, n_ranks=2))
    for layer in range(2):
        assert busiest_load(loads[layer : layer + 1], found[layer], 2) == pytest.approx(
            least_busiest(loads[layer : layer + 1], 8, 2), rel=redivision.ENOUGH
        )


def test_the_worst_layer_comes_first_and_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, slots = in_order(3, 16, seed=1)
    loads[1, :4] += 40  # all on the first rank
    least = busiest_rank_bound(loads, n_slots=16, n_ranks=4)
    free = evened(slots, loads, 4, least)
    monkeypatch.setattr(redivision, "MOST_CELLS", 0)
    assert (evened(slots, loads, 4, least) == slots).all()
    one_round = 3 * (35 * 4 + redivision.PAIR_CELLS)  # three partners, 35 divisions of four slots
    monkeypatch.setattr(redivision, "MOST_CELLS", one_round)
    some = evened(slots, loads, 4, least)
    assert [bool((some[layer] != slots[layer]).any()) for layer in range(3)] == [False, True, False]
    assert all(
        busiest_load(loads[layer : layer + 1], free[layer], 4) <= busiest_load(loads[layer : layer + 1], plan, 4)
        for plans in (slots, some)
        for layer, plan in enumerate(plans)
    )
    assert sorted(free[1].tolist()) == list(range(16))
