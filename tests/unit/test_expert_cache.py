"""Decisions of the slot cache against the replay of caches in `traces`, which was written for another purpose."""

import numpy as np
import pytest

from scenarios.errors import ScenarioError
from sim.expert_cache import SlotCache, all_resident, offloaded
from traces.caches import events_from_sets, replay_cache

N_EXPERTS = 12


def random_counts(seed, n_passes=30, n_layers=3, most=4):
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_passes, n_layers, N_EXPERTS), np.int64)
    popularity = 1 / np.arange(1, N_EXPERTS + 1)
    for place in np.ndindex(n_passes, n_layers):
        size = rng.integers(1, most + 1)
        chosen = rng.choice(N_EXPERTS, size, replace=False, p=popularity / popularity.sum())
        counts[(*place, chosen)] = rng.integers(1, 5, size)
    return counts


def sets(counts):
    return [[set(np.flatnonzero(layer).tolist()) for layer in one] for one in counts]


@pytest.mark.parametrize("n_slots", [4, 6, 11, 12])
def test_hits_are_those_of_the_textbook(n_slots):
    for seed in range(5):
        counts = random_counts(seed)
        uses = offloaded(counts, None, n_slots, copy_from_tokens=1)
        begin = [set(range(n_slots))] * counts.shape[1]
        replay = replay_cache(events_from_sets([begin, *sets(counts)], N_EXPERTS), n_slots)
        found = np.array([[use.n_misses for use in one] for one in uses])
        np.testing.assert_array_equal(found, replay.event_misses[1:])


def test_a_prefetch_is_an_event_of_its_own():
    counts, n_slots = random_counts(7), 6
    predicted = [[sorted(layer)[:2] for layer in one[1:]] for one in sets(random_counts(8))]
    uses = offloaded(counts, predicted, n_slots, copy_from_tokens=1)
    requests = [[set(range(n_slots))] * 3]
    for ahead, wanted in zip(predicted, sets(counts), strict=True):
        requests += [[set(), *map(set, ahead)], wanted]
    replay = replay_cache(events_from_sets(requests, N_EXPERTS), n_slots)
    found = np.array([[use.n_misses for use in one] for one in uses])
    np.testing.assert_array_equal(found, replay.event_misses[2::2])
    ahead = np.array([[len(use.ahead) for use in one[:-1]] for one in uses])
    np.testing.assert_array_equal(ahead, replay.event_misses[1::2, 1:])


def test_experts_of_few_tokens_go_to_the_host_and_leave_the_cache_alone():
    counts = np.zeros((2, 1, 6), np.int64)
    counts[0, 0, [0, 4, 5]] = 1, 3, 1
    counts[1, 0, [1, 4, 5]] = 1, 1, 1
    (first,), (second,) = offloaded(counts, None, 3, copy_from_tokens=2)
    assert (first.resident, first.copied, first.hosted) == ((0,), (4,), (5,))
    # 4 took the place of 2, the highest of those that were not used
    assert (second.resident, second.copied, second.hosted) == ((1, 4), (), (5,))


def test_experts_on_their_way_are_waited_for_once():
    counts = np.zeros((2, 2, 4), np.int64)
    counts[:, :, 3] = 1
    first, second = offloaded(counts, [[[3]], [[3]]], 2, copy_from_tokens=1)
    assert (first[0].copied, first[0].ahead) == ((3,), (3,))
    assert (first[1].coming, first[1].copied, first[1].ahead) == ((3,), (), None)
    assert (second[1].resident, second[1].coming, second[0].ahead) == ((3,), (), ())


def test_a_step_that_no_cache_can_hold_is_refused():
    with pytest.raises(ScenarioError, match="wants 3 experts of a layer, the device has 2 slots"):
        offloaded(np.ones((1, 1, 3), np.int64), None, 2, copy_from_tokens=1)
    with pytest.raises(ScenarioError, match="0 slots for 3 experts"):
        SlotCache(0, 3)
    assert all_resident(np.ones((1, 1, 3), np.int64))[0][0].resident == (0, 1, 2)
