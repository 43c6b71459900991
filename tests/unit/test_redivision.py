"""Re-dividing two ranks' slots: exact for two ranks, never worse, and copies stay apart."""

import numpy as np
import pytest

from placement.load_programmes import busiest_load
from placement.redivision import best_redivided, redivided
from tests.oracles.placement_brute import least_busiest


@pytest.mark.parametrize("seed", range(4))
def test_two_ranks_are_divided_optimally(seed: int) -> None:
    loads = np.random.default_rng(seed).lognormal(0, 1, 8)
    found = redivided(loads, np.arange(8), 2)
    assert busiest_load(loads[None], found, 2) == pytest.approx(least_busiest(loads[None], 8, 2))


@pytest.mark.parametrize("n_ranks", [2, 4, 8])
def test_never_worse_and_no_expert_lost(n_ranks: int) -> None:
    rng = np.random.default_rng(n_ranks)
    loads = rng.lognormal(0, 1, 40)
    slots = np.concatenate([rng.permutation(40), np.arange(8)])
    found = redivided(loads, slots, n_ranks)
    assert busiest_load(loads[None], found, n_ranks) <= busiest_load(loads[None], slots, n_ranks)
    assert sorted(found.tolist()) == sorted(slots.tolist())


def test_two_copies_of_an_expert_stay_on_two_ranks() -> None:
    loads = np.array([8.0, 7.0, 1.0])
    found = redivided(loads, np.array([0, 1, 0, 2]), 2)
    assert sorted(map(sorted, found.reshape(2, 2).tolist())) == [[0, 1], [0, 2]]


def test_the_busiest_of_many_slots_is_still_swapped() -> None:
    # Twelve slots a rank: too many divisions to try all, but the swaps are among those tried.
    loads = np.concatenate([np.full(12, 2.0), np.full(12, 1.0)])
    found = redivided(loads, np.arange(24), 2)
    assert busiest_load(loads[None], found, 2) == 18


def test_more_starts_are_never_worse_and_always_the_same() -> None:
    loads = np.random.default_rng(3).lognormal(0, 1, 24)
    one, many = redivided(loads, np.arange(24), 6), best_redivided(loads, np.arange(24), 6)
    assert busiest_load(loads[None], many, 6) <= busiest_load(loads[None], one, 6)
    assert many.tolist() == best_redivided(loads, np.arange(24), 6).tolist()
