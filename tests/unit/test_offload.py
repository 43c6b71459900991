"""Experts in the host's memory: slots against replays written from the words, prices against hand numbers."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.offload_specs import EvictionName, OffloadSpec, PrefetchSpec
from scenarios.specs import ScenarioSpec
from sim.offload.guesses import follow_chances, guessed
from sim.offload.misses import MissCosts, balanced, split_of
from sim.offload.prices import PIECES
from sim.offload.replay import Requests, replay
from sim.offload.rules import RULES, keeper_of, tie_break
from sim.offload.wanted import Wanted, one_by_one
from sim.result import RunResult
from sim.run import run
from tests.small import random_trace, tiny_cluster, tiny_model, tiny_setting
from traces.caches import CONTRACTS, events_from_sets, replay_cache

N_STEPS, N_EXPERTS = 60, 12
EXPERT_BYTES = 3 * 2048 * 1024 * 2  # olmoe-1b-7b in bf16


def wanted_with(seed: int, n_rows: int = 3) -> Wanted:
    """Uses with strong locality, one layer a row: tokens int[step, layer, 1, place]."""
    rng = np.random.default_rng(seed)
    taste = rng.gumbel(size=(n_rows, N_EXPERTS)) + np.cumsum(rng.normal(size=(N_STEPS, n_rows, N_EXPERTS)), axis=0) / 2
    chosen = np.argsort(-taste - rng.gumbel(size=taste.shape), axis=-1)[..., :3]
    tokens = np.zeros(taste.shape, np.int64)
    np.put_along_axis(tokens, chosen, 1, axis=-1)
    shape = (n_rows, 1, N_EXPERTS)
    return Wanted(
        tokens=tokens[:, :, None, :],
        placed=np.ones(shape, bool),
        popular=tokens.sum(axis=0)[:, None, :].astype(float),
        expert=np.broadcast_to(np.arange(N_EXPERTS), shape).astype(np.int64),
        scores=tokens[:, :, None, :] * rng.random((N_STEPS, n_rows, 1, N_EXPERTS)),
    )


def requests_of(wanted: Wanted, spec: OffloadSpec, ahead: NDArray[np.bool_] | None = None) -> Requests:
    rule = RULES[spec.evict]
    rows = (len(wanted.tokens), -1, N_EXPERTS)
    placed = wanted.placed.reshape(rows[1:])
    slots, ties = np.full(len(placed), spec.slots), tie_break(wanted, spec).reshape(rows[1:])
    return Requests(
        used=wanted.used.reshape(rows),
        ahead=None if ahead is None else ahead.reshape(rows),
        keeper=keeper_of(wanted, spec, slots, ties),
        ties=ties,
        slots=slots,
        placed=placed,
        admits=rule.admits,
    )


@pytest.mark.parametrize("slots", [3, 5, 9, 12])
@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize(("evict", "admission"), [("lru", "forced"), ("lfu", "forced"), ("belady", "bypass")])
def test_slots_do_what_the_cache_replay_of_traces_does(evict: str, admission: str, contract: Any, slots: int) -> None:
    """Two implementations, one of rows of bits and one of sorted accesses: equal misses of every step and layer."""
    whole = wanted_with(slots)
    wanted = one_by_one(whole) if contract == "per_access" else whole
    spec = OffloadSpec.model_validate({"slots": slots, "evict": evict, "start": "first"})
    requests = requests_of(wanted, spec)
    # Empty at first, as there: an access before the first step fills the slots with the first experts otherwise.
    got = replay(replace(requests, placed=np.zeros_like(requests.placed)))
    sets = [[set(np.flatnonzero(layer[0])) for layer in step] for step in whole.used]
    events = events_from_sets(sets, N_EXPERTS)
    want = replay_cache(events, slots, evict, contract=contract, admission=admission)  # type: ignore[arg-type]
    by_step = got.loaded.reshape(N_STEPS, -1, *got.loaded.shape[1:]).any(axis=1)
    np.testing.assert_array_equal(by_step.sum(axis=-1), want.event_misses)


@pytest.mark.parametrize("evict", [name for name, rule in RULES.items() if rule.priorities is not None])
def test_a_loop_over_sets_agrees(evict: EvictionName) -> None:
    """The words of the rule, one expert after another, from warm slots on and with copies ahead."""
    wanted = wanted_with(1, n_rows=1)
    spec = OffloadSpec.model_validate({"slots": 5, "evict": evict})
    rng = np.random.default_rng(2)
    ahead = (rng.random(wanted.tokens.shape) < 0.15) if evict != "static" else np.zeros(wanted.tokens.shape, bool)
    got = replay(requests_of(wanted, spec, ahead))
    listed = RULES[evict].priorities
    assert listed is not None
    priority = listed(wanted, spec)[:, 0, 0]
    tie = tie_break(wanted, spec)[0, 0]
    held = set(np.argsort(-tie)[:5].tolist())
    for step in range(N_STEPS):
        before = priority[step - 1] if step else np.zeros(N_EXPERTS)
        asked = set(np.flatnonzero(ahead[step, 0, 0]).tolist())
        order = sorted(held | asked, key=lambda e: (e in asked, before[e], tie[e]), reverse=True)
        came = set(order[:5]) - held
        held = set(order[:5])
        used = set(np.flatnonzero(wanted.used[step, 0, 0]).tolist())
        assert set(np.flatnonzero(got.fetched_ahead[step, 0])) == came
        assert set(np.flatnonzero(got.coming[step, 0])) == used & came
        assert set(np.flatnonzero(got.resident[step, 0])) == used & held - came
        missed = used - held
        assert set(np.flatnonzero(got.loaded[step, 0])) == missed
        forced = missed if RULES[evict].admits else set()
        now = priority[step]
        order = sorted(held | missed, key=lambda e: (e in forced, now[e], tie[e]), reverse=True)
        held = set(order[:5])


@pytest.mark.parametrize("slots", [3, 6, 9])
def test_no_rule_hits_more_often_than_belady(slots: int) -> None:
    wanted = wanted_with(7)
    hits = {}
    for evict in RULES:
        got = replay(requests_of(wanted, OffloadSpec.model_validate({"slots": slots, "evict": evict})))
        hits[evict] = int(got.resident.sum())
    assert max(hits.values()) == hits["belady"]
    assert hits["belady"] > hits["lru"]


def test_every_use_is_served_once() -> None:
    wanted = wanted_with(3)
    rng = np.random.default_rng(0)
    spec = OffloadSpec.model_validate({"slots": 4})
    got = replay(
        requests_of(wanted, spec, rng.random(wanted.tokens.shape) < 0.2),
        lambda step, _hit, missed: missed & (step % 2 == 0),
    )
    served = got.resident.astype(int) + got.coming + got.loaded + got.hosted
    np.testing.assert_array_equal(served, wanted.used.reshape(served.shape))
    assert not (got.hosted[::2]).any() and not got.loaded[1::2].any()


def costs_with(seed: int, n_places: int = 8) -> tuple[MissCosts, NDArray[np.bool_], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 30, (1, 40, n_places))
    costs = MissCosts(host_s=0.3 + 0.2 * tokens, device_s=0.4 + 0.001 * tokens, copy_s=1.5, call_s=0.5)
    state = rng.integers(0, 3, (40, n_places))
    return costs, state == 1, state == 2


def end_s(costs: MissCosts, row: int, hit: NDArray[np.bool_], copied: list[int], hosted: list[int]) -> float:
    """The three queues of a layer in words."""
    device_s, host_s = costs.device_s[0, row], costs.host_s[0, row]
    host = sum(host_s[e] for e in hosted) + (costs.call_s if hosted else 0.0)
    device = device_s[np.flatnonzero(hit)].sum() + sum(device_s[e] for e in copied)
    last = len(copied) * costs.copy_s + (min(device_s[e] for e in copied) if copied else 0.0)
    return float(max(host, device, last))


def test_a_balanced_split_is_near_the_best_of_all() -> None:
    """Against all 2^n assignments of the misses, of which it looks at n + 1: never better, and 5 % worse at most."""
    worse = []
    for seed in range(5):
        costs, hit, missed = costs_with(seed)
        copied = balanced(costs, 0, hit, missed)
        assert not (copied & ~missed).any()
        for row in range(len(hit)):
            misses = np.flatnonzero(missed[row]).tolist()
            own = np.flatnonzero(copied[row]).tolist()
            got = end_s(costs, row, hit[row], own, [e for e in misses if e not in own])
            every = (c for n in range(len(misses) + 1) for c in combinations(misses, n))
            best = min(end_s(costs, row, hit[row], list(c), [e for e in misses if e not in c]) for c in every)
            assert got >= best - 1e-12
            worse.append(got / best - 1 if best else 0.0)
    assert max(worse) < 0.25
    assert np.mean(worse) < 0.05


def test_each_expert_goes_where_it_is_sooner() -> None:
    """Fiddler's rule: tokens * t_host against copy + t_device; here 0.2 n + 0.8 > 1.9 + 0.001 n from 6 tokens on."""
    costs, hit, missed = costs_with(0)
    split = split_of("cheaper", lambda: costs)
    assert split is not None
    tokens = (costs.host_s[0] - 0.3) / 0.2
    np.testing.assert_array_equal(split(0, hit, missed), missed & (tokens > 5.5))


def test_chances_are_counted_on_the_tokens_given() -> None:
    trace = random_trace(tiny_model())
    tokens = np.arange(50)
    got = follow_chances(trace, tokens, 0, 1)
    want = np.zeros((8, 8))
    for token in tokens:
        for e in trace.ids[0, :, token]:
            for later in trace.ids[1, :, token]:
                want[e, later] += 1
    uses = np.bincount(trace.ids[0][:, tokens].ravel(), minlength=8)
    np.testing.assert_allclose(got, want / np.maximum(uses, 1)[:, None])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"slots": 4, "share": 0.5}, "either slots"),
        ({}, "either slots"),
        ({"slots": 4, "defer": 0.5}, "computes nothing"),
        ({"slots": 4, "miss": "host"}, "evict: static"),
        ({"slots": 4, "evict": "mrs", "replay": "per-access"}, "evict mrs: decided for all"),
        ({"slots": 4, "priority": "demand-first"}, "give a prefetch"),
        ({"slots": 4, "evict": "static", "prefetch": {"by": "oracle"}}, "has no place"),
        ({"slots": 4, "prefetch": {"by": "learned"}}, "needs width"),
        ({"slots": 4, "prefetch": {"by": "noisy", "width": 4}}, "noisy needs it"),
        ({"slots": 4, "prefetch": {"by": "popular", "width": 4, "recall": 0.5}}, "belongs to prefetch by noisy"),
    ],
)
def test_contradictions_are_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OffloadSpec.model_validate(spec)


def test_named_experts_have_the_recall_that_was_asked_for() -> None:
    setting = tiny_setting(tiny_model(), tiny_cluster(1, 1), random_trace(tiny_model()))
    wanted = replace(wanted_with(5), popular=np.ones((3, 1, N_EXPERTS)))
    spec = PrefetchSpec(by="noisy", width=4, recall=0.7)
    named = guessed(wanted, setting, spec)
    assert not named[:, 0].any()
    assert (named[:, 1:].sum(axis=-1) == 4).all()
    recall = (named & wanted.used)[:, 1:].sum() / wanted.used[:, 1:].sum()
    assert recall == pytest.approx(0.7, abs=0.06)  # 360 uses: 2.4 standard errors


BASE: dict[str, Any] = {
    "name": "offload",
    "model": {"card": "olmoe-1b-7b", "n_layers": 4},
    "cluster": {"node": "rtx-4090-1"},
    "workload": {"synthetic": {"tokens": 4096}, "tokens_per_device": 1, "steps": 16},
}


def simulated(offload: dict[str, Any] | None, **fields: Any) -> RunResult:
    memory = {} if offload is None else {"memory": {"offload": offload}}
    return run(ScenarioSpec.model_validate(BASE | fields | memory), Path(), "test").tables[0].results[0]


def test_slots_for_all_experts_cost_nothing() -> None:
    """Nothing is missed, so that every step takes as long as with all experts on the device, to the last bit."""
    for fields in ({}, {"workload": BASE["workload"] | {"tokens_per_device": 8}}):
        plain, whole = simulated(None, **fields), simulated({"slots": 64}, **fields)
        np.testing.assert_array_equal(whole.step_times_s, plain.step_times_s)
        assert whole.metrics["cache_hit_frac"] == 1.0
        assert whole.metrics["exposed_copy_s"] == 0.0
        assert whole.metrics["memory_bytes.peak"] - plain.metrics["memory_bytes.peak"] == EXPERT_BYTES


def test_eight_misses_a_layer_take_eight_copies() -> None:
    """Cold static slots: with one token a step, all four layers wait for the copies of their misses, nothing else."""
    fast = {"cluster": {"node": "rtx-4090-1", "host_bandwidth": "1 GB/s", "host_message": "0 us"}}
    result = simulated({"slots": 8, "evict": "static"}, **fast)
    copy_s = EXPERT_BYTES / (1e9 * 0.78)  # efficiency of pcie-4, assumed
    assert result.metrics["experts_copied"] <= PIECES * 4
    copies_s = result.metrics["experts_copied"] * copy_s
    resident = simulated(None)
    assert result.metrics["busy_frac.to-device"] * result.metrics["step_time_s"] == pytest.approx(copies_s, rel=0.1)
    least_s = copies_s + resident.breakdown_s["attention"] + resident.breakdown_s["gate"]
    assert least_s <= result.metrics["step_time_s"] * 1.0001
    assert result.metrics["step_time_s"] < copies_s + resident.metrics["step_time_s"] * 1.5


def test_copies_ahead_hide_behind_the_layer_before() -> None:
    """An oracle copies while the layer before computes: never slower than on demand, and the same copies in total."""
    slow, quick = simulated({"slots": 16}), simulated({"slots": 16, "prefetch": {"by": "oracle"}})
    assert quick.metrics["step_time_s"] < slow.metrics["step_time_s"]
    assert quick.metrics["experts_copied"] == slow.metrics["experts_copied"]
    assert quick.metrics["cache_hit_frac"] == 1.0
    assert quick.metrics["prefetch_used_frac"] == 1.0
    assert slow.metrics["cache_hit_frac"] <= quick.metrics["timely_hit_frac"] < 1.0


def test_wrong_guesses_are_given_up_when_the_gate_has_spoken() -> None:
    """On a slow link: fewer bytes and a shorter step than where they are copied to the end."""
    guess = {"by": "popular", "width": 8}
    link = {"cluster": BASE["cluster"] | {"host_bandwidth": "4 GB/s"}}
    way = {"slots": 16, "packet": "1 MiB", "priority": "demand-first"}
    kept = simulated(way | {"prefetch": guess}, **link)
    queued = simulated(way | {"prefetch": guess, "priority": "fifo"}, **link)
    given_up = simulated(way | {"prefetch": guess | {"cancel": True}}, **link)
    assert kept.metrics["copied_bytes"] == queued.metrics["copied_bytes"] > given_up.metrics["copied_bytes"]
    assert queued.metrics["step_time_s"] >= kept.metrics["step_time_s"] > given_up.metrics["step_time_s"]
    copy_s = [
        result.metrics["busy_frac.to-device"] * result.metrics["step_time_s"] / result.metrics["experts_copied"]
        for result in (queued, kept, given_up)
    ]
    np.testing.assert_allclose(copy_s, copy_s[0])


def test_deferred_results_are_waited_for_one_layer_later() -> None:
    """KTransformers: what the host postpones runs beside the next layer's attention."""
    at_once = simulated({"slots": 0, "evict": "static", "miss": "host"})
    deferred = simulated({"slots": 0, "evict": "static", "miss": "host", "defer": 0.75})
    assert deferred.metrics["step_time_s"] < at_once.metrics["step_time_s"]
    assert deferred.metrics["busy_frac.host"] > at_once.metrics["busy_frac.host"]
    assert at_once.metrics["hosted_frac"] == 1.0


@pytest.mark.parametrize(
    ("offload", "fields", "words"),
    [
        ({"slots": 4}, {}, "cannot hold the 8 experts"),
        ({"slots": 16, "prefetch": {"by": "popular", "width": 17}}, {}, "exceeds the 16 slots"),
        ({"slots": 16}, {"schedule": {"overlap": "chunked", "chunks": 1}}, "schedule of its own"),
        ({"slots": 16, "evict": "mrs"}, {}, "the trace holds none"),
        ({"slots": 16, "cores": 4096}, {}, "give 1 to 64"),
        (
            {"slots": 16, "prefetch": {"by": "learned", "width": 4}},
            {"workload": BASE["workload"] | {"split": {"fit": 0, "evaluate": 1}}},
            "learns from the fitted part",
        ),
        ({"slots": 16}, {"cluster": {"node": "h800-8"}}, "has no host"),
    ],
)
def test_what_does_not_fit_is_refused(offload: dict[str, Any], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        simulated(offload, **fields)


def test_experts_that_no_host_can_hold_are_refused() -> None:
    with pytest.raises(MemoryInfeasible, match="live in each i9-9900x"):
        simulated(
            {"slots": 0, "evict": "static", "miss": "host"}, cluster={"node": "rtx-3090-1"}, model="mixtral-8x22b"
        )


def test_experts_of_several_ranks_are_cached_by_each() -> None:
    """Each of four devices has slots for its own experts; the step is longer than without misses."""
    fields = {"cluster": {"node": "rtx-4090-4"}, "workload": BASE["workload"] | {"tokens_per_device": 4}}
    plain, cached = simulated(None, **fields), simulated({"share": 0.5}, **fields)
    assert 0.3 < cached.metrics["cache_hit_frac"] < 1.0
    assert cached.metrics["step_time_s"] > plain.metrics["step_time_s"]
    assert cached.metrics["memory_bytes.peak"] < plain.metrics["memory_bytes.peak"]
