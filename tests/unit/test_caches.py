"""Cache replay and curves: the conformance toys, hand-counted cases, refusals."""

import csv
import json
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest

from scenarios.errors import TraceError
from tests.shared import shared_file
from tests.toy_traces import trace_of
from traces.cache_curves import cache_curve, lru_curve, pool_capacity
from traces.caches import CONTRACTS, POLICIES, events_from_sets, events_from_trace, replay_cache

TOY = [[{0, other}] * 3 for other in (1, 2, 1, 3, 1)]
TOY_MISSES = [[2, 2, 2]] + [[1, 1, 1]] * 4
DISCRIMINATING = [[{0, 1}], [{0, 1, 2}], [{0, 1, 2}]]


def check_toy(result):
    assert (result.accesses, result.hits, result.misses) == (30, 12, 18)
    assert (result.compulsory, result.capacity_misses) == (12, 6)
    assert (result.insertions, result.evictions, result.transfers) == (18, 12, 18)
    assert result.event_misses.tolist() == TOY_MISSES
    assert [result.step_miss_quantile(q) for q in (0.5, 0.95, 1)] == [3, 6, 6]
    assert [result.event_miss_quantile(q) for q in (0.5, 0.95, 0.99)] == [1, 2, 2]
    assert (result.hit_frac, result.transfers_per_token) == (0.4, 3.6)


def test_event_atomic_toy():
    result = replay_cache(events_from_sets(TOY, 4), 2)
    check_toy(result)
    assert (result.contract, result.policy, result.admission) == ("event_atomic", "lru", "bypass")


def test_event_atomic_toy_does_not_tell_the_contracts_apart():
    result = replay_cache(events_from_sets(TOY, 4), 2, "lru", "per_access")
    assert (result.hits, result.misses) == (12, 18)


def test_published_toy_file():
    folder = shared_file("data/traces/event_atomic_toy")
    requests = [[set() for _ in range(3)] for _ in range(5)]
    with (folder / "events.csv").open() as stream:
        for row in csv.DictReader(stream):
            requests[int(row["scheduler_step"])][int(row["layer"])] = {int(e) for e in row["requested_experts"].split()}
    result = replay_cache(events_from_sets(requests, 4), 2, tie_rng=np.random.default_rng(7))
    check_toy(result)
    expected = json.loads((folder / "manifest.json").read_text())["expected"]
    assert result.event_misses.ravel().tolist() == expected["event_misses"]


@pytest.mark.parametrize("tie_rng", [None, *map(np.random.default_rng, range(5))])
def test_second_toy_event_atomic_under_any_tie_rule(tie_rng):
    result = replay_cache(events_from_sets(DISCRIMINATING, 3), 2, tie_rng=tie_rng)
    assert (result.accesses, result.hits, result.misses) == (8, 4, 4)
    assert result.regime_quantile(1) == 1.5


def test_second_toy_per_access_evicts_what_the_event_still_needs():
    result = replay_cache(events_from_sets(DISCRIMINATING, 3), 2, "lru", "per_access")
    assert (result.hits, result.misses) == (2, 6)
    assert result.event_misses.ravel().tolist() == [2, 1, 3]


def test_forced_admission_costs_belady_its_bypass():
    # capacity 1: 0 is always wanted, 1, 2, 3 only once. Bypass keeps 0 throughout; forced admission loses it each time.
    events = events_from_sets([[{0}], [{1}], [{0}], [{2}], [{0}], [{3}], [{0}]], 4)
    bypass = replay_cache(events, 1, "belady")
    forced = replay_cache(events, 1, "belady", admission="forced")
    assert (bypass.hits, bypass.insertions, bypass.evictions) == (3, 1, 0)
    assert (forced.hits, forced.insertions, forced.evictions) == (0, 7, 6)


def test_frequency_outlives_an_eviction():
    # capacity 1, bypass: 0 has two accesses, so 1 stays out at its first, stays at its second (2 = 2, the newer) and
    # hits at its third. 0 comes back with its third access (3 = 3, the newer) and stays: its two were not forgotten.
    events = events_from_sets([[{0}], [{0}], [{1}], [{1}], [{1}], [{0}], [{0}]], 2)
    result = replay_cache(events, 1, "lfu")
    assert result.event_misses.ravel().tolist() == [1, 0, 1, 1, 0, 1, 0]


def test_layers_without_a_request_stand_still():
    result = replay_cache(events_from_sets([[{0}, set()], [{1}, {1}], [{0}, set()], [set(), {1}]], 2), 1)
    assert result.event_misses.tolist() == [[1, 0], [1, 1], [1, 0], [0, 0]]
    assert result.event_accesses.tolist() == [[1, 0], [1, 1], [1, 0], [0, 1]]


def test_batches_are_merged_before_the_cache_is_asked():
    trace = trace_of([[[0, 1], [3, 2]], [[1, 2], [3, 0]], [[2, 3], [1, 0]]], 4)
    events = events_from_trace(trace, [np.array([0, 1]), np.array([2])])
    assert events.pool_ids.tolist() == [0, 1, 2, 4, 6, 7, 2, 3, 4, 5]
    assert (events.offsets.tolist(), events.tokens.tolist(), events.logical.tolist()) == ([0, 6, 10], [2, 1], [8, 4])
    result = replay_cache(events, 3)
    assert (result.accesses, result.logical, result.tokens) == (10, 12, 3)
    assert result.effective_miss_frac == result.misses / 12


def test_padding_asks_for_nothing():
    trace = trace_of([[[0, 255]], [[255, 255]], [[1, 0]]], 4, padding=True)
    events = events_from_trace(trace, np.arange(3)[:, None])
    assert (events.pool_ids.tolist(), events.offsets.tolist()) == ([0, 0, 1], [0, 1, 1, 3])
    assert lru_curve(trace, "model_pool").accesses == 3


def test_first_touch_is_a_hit_of_every_pool_that_is_large_enough():
    # stack distances 0 (second token) and 2 (last token); first touches are the 1st, 2nd and 3rd distinct expert
    trace = trace_of([[[0]], [[0]], [[1]], [[2]], [[0]]], 4)
    assert lru_curve(trace, "model_pool").hits.tolist() == [2, 3, 5, 5]
    assert lru_curve(trace, "per_layer_cold").hits.tolist() == [1, 1, 2, 2]


def test_one_pool_serves_all_layers():
    # pool entries a, b (layers 0, 1), then c, d, then a, b with 3 and 2 more recent ones: distances 3 and 2;
    # per layer, a cache of one expert always holds the wrong one
    trace = trace_of([[[0], [0]], [[1], [1]], [[0], [0]]], 2)
    assert lru_curve(trace, "model_pool").hits.tolist() == [1, 2, 4, 6]
    assert lru_curve(trace, "per_layer_cold").hits.tolist() == [0, 2]


def test_a_cache_does_not_live_across_sequences():
    tokens = [[[0]], [[0]], [[0]], [[0]]]
    assert lru_curve(trace_of(tokens, 2), "per_layer_cold").at(1) == 0.75
    assert lru_curve(trace_of(tokens, 2, [2, 2]), "per_layer_cold").at(1) == 0.5
    assert cache_curve(trace_of(tokens, 2, [2, 2]), "belady", "per_layer_cold", [1]).at(1) == 0.5


def test_pool_capacity_counts_the_experts_of_a_token():
    assert pool_capacity(trace_of([[[0, 1], [0, 1], [2, 3]]], 4), 1.5) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "fifo"}, "unknown cache policy 'fifo'; known: lru, lfu, belady"),
        ({"contract": "atomic"}, "unknown replay contract 'atomic'; known: event_atomic, per_access"),
        ({"admission": "free"}, "unknown admission 'free'; known: bypass, forced"),
        ({"capacity": 0}, "0 experts per layer is impossible; choose 1 to 4"),
        ({"capacity": 5}, "5 experts per layer is impossible; choose 1 to 4"),
        ({"events": events_from_sets([[set()]], 4)}, "ask for no expert at all"),
    ],
)
def test_replay_refuses(change, message):
    with pytest.raises(TraceError, match=message):
        replay_cache(**{"events": events_from_sets(TOY, 4), "capacity": 2, **change})


def test_events_refuse():
    trace = trace_of([[[0]], [[1]]], 2)
    with pytest.raises(TraceError, match="step 1 of the batches has no tokens"):
        events_from_trace(trace, [np.array([0]), np.array([], int)])
    with pytest.raises(TraceError, match="name tokens 0 to 2, the trace has 0 to 1"):
        events_from_trace(trace, [np.array([0, 2])])
    with pytest.raises(TraceError, match="one row of integers, got float64"):
        events_from_trace(trace, [np.array([0.0])])
    with pytest.raises(TraceError, match="step 0: expert 4 is out of range for 4 experts"):
        events_from_sets([[{0, 4}]], 4)
    with pytest.raises(TraceError, match=r"same layers, got \[2, 1\]"):
        events_from_sets([[{0}, {1}], [{0}]], 4)


def test_curves_refuse():
    trace = trace_of([[[0]], [[1]]], 2)
    with pytest.raises(TraceError, match="unknown cache policy 'arc'"):
        cache_curve(trace, "arc", "model_pool", [1])
    with pytest.raises(TraceError, match="unknown cache convention 'warm'; known: model_pool, per_layer_cold"):
        cache_curve(trace, "lru", "warm", [1])
    with pytest.raises(TraceError, match=r"from 1 to 2 experts, got \[0, 3\]"):
        cache_curve(trace, "lru", "model_pool", [0, 3])
    with pytest.raises(TraceError, match="got none"):
        cache_curve(trace, "lru", "model_pool", [])
    with pytest.raises(TraceError, match="no point at capacity 2"):
        cache_curve(trace, "lru", "model_pool", [1]).at(2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_compiled_twin_replays_the_same(monkeypatch, seed):
    pytest.importorskip("numba")
    rng = np.random.default_rng(seed)
    steps = [[set(rng.integers(12, size=rng.integers(6)).tolist()) for _ in range(3)] for _ in range(200)]
    events = events_from_sets(steps, 12)
    for case in product((1, 3, 7, 12), POLICIES, CONTRACTS, ("bypass", "forced"), (None, 5)):
        *asked, tie_seed = case
        monkeypatch.delenv("MOESIM_SPEED", raising=False)
        plain = replay_cache(events, *asked, tie_rng=None if tie_seed is None else np.random.default_rng(tie_seed))
        monkeypatch.setenv("MOESIM_SPEED", "numba")
        compiled = replay_cache(events, *asked, tie_rng=None if tie_seed is None else np.random.default_rng(tie_seed))
        np.testing.assert_equal(asdict(compiled), asdict(plain))
