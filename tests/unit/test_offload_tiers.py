"""Slots that all layers share, two precisions, activation matrices, waiting engines: against words and hand numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from scenarios.errors import ScenarioError
from scenarios.offload_specs import GradesSpec, OffloadSpec, PrefetchSpec
from scenarios.specs import ScenarioSpec
from sim.offload.grades import graded
from sim.offload.guesses import guessed
from sim.offload.replay import Requests, replay
from sim.offload.rules import four_terms, keeper_of, tie_break
from sim.offload.wanted import Wanted, in_pool, out_of_pool, pooled, wanted_of
from sim.result import RunResult
from sim.run import run
from sim.session import reduced
from tests.conformance.test_offloaded_experts import replayed, spec_of, wanted_with
from tests.small import even_placement, tiny_cluster, tiny_model, tiny_setting, trace_of
from traces.gate_weights import drawn_weights

EXPERT_BYTES = 3 * 2048 * 1024 * 2  # olmoe-1b-7b in bf16


def test_a_pool_is_one_lru_cache_of_all_layers() -> None:
    """One dict, layer after layer; of experts used at once, and of those of the start, the more popular stays."""
    wanted = wanted_with(3)
    got = replayed(wanted, spec_of("lru", "model"))
    n_layers, n_places = wanted.tokens.shape[1], wanted.tokens.shape[-1]
    popular = wanted.popular[:, 0]
    keys = [(layer, place) for layer in range(n_layers) for place in range(n_places)]
    held = sorted(keys, key=lambda key: -popular[key])[: 4 * n_layers]
    last = dict.fromkeys(held, -1)
    time = 0
    for step in range(len(wanted.tokens)):
        for layer in range(n_layers):
            used = {(layer, place) for place in np.flatnonzero(wanted.used[step, layer, 0]).tolist()}
            assert {(layer, p) for p in np.flatnonzero(got.resident[step, layer, 0]).tolist()} == used & last.keys()
            last.update(dict.fromkeys(used, time))
            time += 1
            while len(last) > 4 * n_layers:
                del last[min(last, key=lambda key: (last[key], popular[key]))]


def test_pools_keep_what_they_hold() -> None:
    by_layer = np.random.default_rng(0).random((4, 3, 2, 5)) < 0.5
    spread = in_pool(by_layer)
    assert spread.shape == (12, 1, 2, 15)
    assert spread.sum() == by_layer.sum()
    np.testing.assert_array_equal(out_of_pool(spread, by_layer.shape), by_layer)


def test_four_terms_are_those_of_the_paper() -> None:
    wanted = pooled(wanted_with(2, n_steps=4))
    spec = OffloadSpec.model_validate({"slots": 6, "pool": "model", "evict": "hobbit", "terms": (0.1, 0.2, 0.3, 0.4)})
    got = four_terms(wanted, spec)[:, 0, 0]
    used, dear = wanted.used[:, 0, 0], wanted.dear
    assert dear is not None
    for event, place in np.ndindex(got.shape):
        so_far = event + 1
        uses = np.flatnonzero(used[:so_far, place])
        recent = uses[-1] + 1 if len(uses) else 0
        exact = dear[:so_far, 0, 0, place].sum()
        until = (place // 10 - event % 3) % 3
        want = (0.1 * recent + 0.2 * len(uses) + 0.3 * exact) / so_far + 0.4 * (1 - until / 3)
        assert got[event, place] == pytest.approx(want)


def test_misses_are_copied_in_the_precision_that_they_ask_for() -> None:
    """Two caches in words: what the high one lacks goes to the low one, unless it is to be left out."""
    wanted = wanted_with(6)
    rng = np.random.default_rng(1)
    used = wanted.used[:, 0]
    dear = used & (rng.random(used.shape) < 0.5)
    cheap = used & ~dear & (rng.random(used.shape) < 0.7)
    spec = OffloadSpec.model_validate({"slots": 3, "start": "first"})
    first = Wanted(
        tokens=wanted.tokens[:, :1], placed=wanted.placed[:1], popular=wanted.popular[:1], expert=wanted.expert[:1]
    )
    ties = tie_break(first, spec)[0]
    slots = np.array([3])
    requests = Requests(
        used=used,
        ahead=None,
        keeper=keeper_of(first, spec, slots, ties),
        ties=ties,
        slots=slots,
        placed=np.ones((1, 10), bool),
        admits=True,
    )
    served, low = graded(requests, (dear, cheap), np.array([2]))
    high_last, low_last = {0: -1, 1: -1, 2: -1}, dict[int, int]()
    for step in range(len(used)):
        now = set(np.flatnonzero(used[step, 0]).tolist())
        hits = now & high_last.keys()
        loads = {e for e in now - hits if dear[step, 0, e]}
        lower = {e for e in now - hits if cheap[step, 0, e]}
        assert set(np.flatnonzero(served.resident[step, 0])) == hits
        assert set(np.flatnonzero(served.loaded[step, 0])) == loads
        assert set(np.flatnonzero(low.resident[step, 0])) == lower & low_last.keys()
        assert set(np.flatnonzero(low.loaded[step, 0])) == lower - low_last.keys()
        assert set(np.flatnonzero(low.skipped[step, 0])) == now - hits - loads - lower
        uses = {e: max(np.flatnonzero(used[: step + 1, 0, e]), default=-1) for e in high_last.keys() | loads}
        order = sorted(uses, key=lambda e: (e in loads, uses[e], -e), reverse=True)
        high_last = {e: uses[e] for e in order[:3]}
        fresh = lower - low_last.keys()
        low_last |= dict.fromkeys(lower, step)
        order = sorted(low_last, key=lambda e: (e in fresh, low_last[e], -e), reverse=True)
        low_last = {e: low_last[e] for e in order[:2]}
    assert not served.hosted.any()


def test_thresholds_look_at_the_experts_before() -> None:
    """Weights .5, .3, .2: sums before them are 0, .5 and .8, in whatever order the trace has its experts."""
    model = tiny_model(top_k=3)
    ids = np.tile(np.array([[4], [2], [7]]), (2, 1, 6))
    weights = np.broadcast_to(np.array([0.3, 0.5, 0.2])[:, None], ids.shape).astype(np.float16)
    setting = tiny_setting(model, tiny_cluster(1, 1), trace_of(ids, 8, weights=weights), tokens_per_device=1)
    placement = even_placement(model, 1)
    reduction = reduced(setting, placement, ScenarioSpec.model_validate(BASE).schedule)
    for high, low, dear, cheap in ((0.45, 0.7, {2}, {4}), (0.6, 0.9, {2, 4}, {7}), (0.1, 0.2, {2}, set())):
        wanted = wanted_of(setting, placement, reduction, grades=GradesSpec(high=high, low=low))
        assert wanted.dear is not None and wanted.cheap is not None
        assert set(np.flatnonzero(wanted.dear[0, 0, 0])) == dear
        assert set(np.flatnonzero(wanted.cheap[0, 0, 0])) == cheap


def test_the_most_alike_of_known_sequences_is_expected() -> None:
    """Two kinds of sequences, one on experts 0 and 1, one on 2 and 3: after one token it is clear which it is."""
    model = tiny_model()
    kinds = np.array([0, 1, 0, 1])
    tokens = np.repeat(kinds, 5)
    ids = np.stack([np.stack([2 * tokens, 2 * tokens + 1])] * 2)
    trace = trace_of(ids, 8, [5] * 4)
    setting = tiny_setting(model, tiny_cluster(1, 1), trace, tokens_per_device=1, steps=8)
    setting = replace(setting, fit_tokens=np.arange(10))
    placement = even_placement(model, 1)
    wanted = wanted_of(setting, placement, reduced(setting, placement, ScenarioSpec.model_validate(BASE).schedule))
    asked = guessed(wanted, setting, PrefetchSpec(by="activation", width=2))
    begun = trace.positions[setting.batches.tokens.ravel()] > 0
    assert begun.any()
    np.testing.assert_array_equal(asked[begun], wanted.used[begun])


def test_gate_weights_are_those_of_the_highest_logits() -> None:
    """Against drawing all logits and sorting them, by the mean of every place."""
    rng = np.random.default_rng(0)
    got = drawn_weights(np.zeros((1, 3, 20000), np.int64), 10, 1.4, rng)[0].astype(float)
    logits = np.sort(1.4 * rng.standard_normal((20000, 10)), axis=1)[:, ::-1][:, :3].T
    want = np.exp(logits) / np.exp(logits).sum(axis=0)
    np.testing.assert_allclose(got.sum(axis=0), 1, atol=2e-3)
    np.testing.assert_allclose(got.mean(axis=1), want.mean(axis=1), atol=0.004)
    np.testing.assert_allclose(got.std(axis=1), want.std(axis=1), atol=0.004)


BASE: dict[str, Any] = {
    "name": "offload",
    "model": {"card": "olmoe-1b-7b", "n_layers": 2},
    "cluster": {"node": "rtx-4090-1"},
    "workload": {
        "synthetic": {"tokens": 256, "sequence_tokens": 64, "gate_spread": 1.5},
        "tokens_per_device": 1,
        "steps": 4,
    },
}


def simulated(offload: dict[str, Any] | None, **fields: Any) -> RunResult:
    memory = {} if offload is None else {"memory": {"offload": offload}}
    return run(ScenarioSpec.model_validate(BASE | fields | memory), Path(), "test").tables[0].results[0]


def test_low_precision_moves_fewer_bytes() -> None:
    plain = simulated({"slots": 8, "evict": "static"})
    low = simulated({"slots": 8, "evict": "static", "grades": {"high": 0, "low": 1, "dtype": "int4"}})
    n = plain.metrics["experts_copied"]
    assert low.metrics["experts_copied"] == n
    assert plain.metrics["copied_bytes"] == n * EXPERT_BYTES
    of_low = low.metrics["low_precision_frac"] * 16
    assert low.metrics["copied_bytes"] == pytest.approx((n - of_low + of_low * (0.5 + 2 / 128) / 2) * EXPERT_BYTES)
    assert low.metrics["step_time_s"] < plain.metrics["step_time_s"]
    some = simulated({"slots": 8, "evict": "static", "grades": {"high": 0, "low": 1, "dtype": "int4", "slots": 16}})
    room = some.metrics["memory_bytes.peak"] - low.metrics["memory_bytes.peak"]
    assert room == pytest.approx(2 * 16 * (0.5 + 2 / 128) / 2 * EXPERT_BYTES)


def test_experts_that_are_left_out_are_neither_copied_nor_computed() -> None:
    plain = simulated({"slots": 8, "evict": "static"})
    bold = simulated({"slots": 8, "evict": "static", "grades": {"high": 0.0, "low": 0.0}})
    skipped = bold.metrics["skipped_frac"] * 16
    assert skipped > 1
    assert bold.metrics["experts_copied"] == pytest.approx(plain.metrics["experts_copied"] - skipped)


def test_an_engine_that_waits_is_slower_by_just_that() -> None:
    plain, slow = simulated(None), simulated(None, schedule={"layer_overhead": "3 ms"})
    np.testing.assert_allclose(slow.step_times_s, plain.step_times_s + 2 * 3e-3)
    assert slow.metrics["step_time_s.low"] > plain.metrics["step_time_s.low"] + 5.9e-3


def test_an_engine_that_waits_is_refused_where_it_would_be_forgotten() -> None:
    fields = {"schedule": {"layer_overhead": "1 ms"}, "workload": BASE["workload"] | {"phase": "train"}}
    with pytest.raises(ScenarioError, match="forward passes only"):
        simulated(None, **fields)


def test_copies_ahead_go_on_while_the_engine_waits() -> None:
    ahead = {"slots": 16, "prefetch": {"by": "oracle"}}
    waiting = simulated(ahead, schedule={"layer_overhead": "50 ms"})
    assert waiting.metrics["exposed_copy_s"] < 0.2 * simulated(ahead).metrics["exposed_copy_s"]
    between = simulated(ahead, schedule={"step_overhead": "100 ms"})
    assert between.metrics["exposed_copy_s"] == pytest.approx(simulated(ahead).metrics["exposed_copy_s"])


def test_the_host_is_as_fast_as_its_memory() -> None:
    """One token a step streams weights: half the bandwidth, twice the time of the experts alone."""
    offload = {"slots": 0, "evict": "static", "miss": "host"}
    times = []
    for rate in ("20 GB/s", "10 GB/s", "5 GB/s"):
        times.append(
            simulated(offload, cluster=BASE["cluster"] | {"host_memory_bandwidth": rate}).metrics["step_time_s"]
        )
    assert times[2] - times[1] == pytest.approx(2 * (times[1] - times[0]))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"slots": 4, "grades": {"high": 0.9, "low": 0.5}}, "exceeds low"),
        ({"slots": 4, "grades": {}, "miss": "balanced"}, "miss: load"),
        ({"slots": 4, "pool": "model", "evict": "mrs"}, "use pool layer"),
        ({"slots": 4, "pool": "model", "whole_layers": 2}, "use pool layer"),
    ],
)
def test_contradictions_are_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OffloadSpec.model_validate(spec)


def test_grades_need_gate_weights() -> None:
    with pytest.raises(ScenarioError, match="gate_spread"):
        simulated(
            {"slots": 8, "grades": {}},
            workload={"synthetic": {"tokens": 512}, "tokens_per_device": 1, "steps": 2},
        )


def test_a_pool_smaller_than_a_token_is_refused() -> None:
    with pytest.raises(ScenarioError, match="cannot hold the 8 experts"):
        simulated({"slots": 7, "pool": "model"})


def test_low_slots_do_not_serve_without_a_replay() -> None:
    """An empty low cache serves nothing in the first step."""
    requests = Requests(
        used=np.ones((1, 1, 4), bool),
        ahead=None,
        keeper=keeper_of(
            Wanted(
                tokens=np.ones((1, 1, 1, 4), np.int64),
                placed=np.ones((1, 1, 4), bool),
                popular=np.zeros((1, 1, 4)),
                expert=np.arange(4)[None, None],
            ),
            OffloadSpec.model_validate({"slots": 0}),
            np.array([0]),
            np.zeros((1, 4)),
        ),
        ties=np.linspace(0, 0.9, 4)[None],
        slots=np.array([0]),
        placed=np.ones((1, 4), bool),
        admits=True,
    )
    _, low = graded(requests, (np.zeros((1, 1, 4), bool), np.ones((1, 1, 4), bool)), np.array([4]))
    assert low.loaded.all() and not low.resident.any()
    assert replay(requests).loaded.all()
