"""Every rule of eviction, way of serving a miss and guess through one suite; a name without an implementation fails."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from scenarios.offload_specs import EvictionName, GuessName, MissName, OffloadSpec, PrefetchSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import ScenarioSpec
from sim.offload.guesses import GUESSES, guessed
from sim.offload.misses import MissCosts, split_of
from sim.offload.replay import Replayed, Requests, replay
from sim.offload.rules import RULES, keeper_of, tie_break
from sim.offload.wanted import Wanted, in_pool, out_of_pool, pooled, wanted_of
from sim.run import run
from sim.session import reduced
from sim.setting import Setting
from tests.small import even_placement, random_trace, tiny_cluster, tiny_model, tiny_setting
from traces.routing import RoutingTrace

N_STEPS, N_LAYERS, N_EXPERTS, SLOTS = 50, 3, 10, 4
EVICTIONS, GUESS_NAMES, MISSES = (get_args(names) for names in (EvictionName, GuessName, MissName))
CAUSAL = [name for name in EVICTIONS if name not in ("sch", "belady")]
POOLS = ("layer", "model")


def wanted_with(seed: int, n_steps: int = N_STEPS) -> Wanted:
    """Uses of three layers with some locality, two or three experts a step; first steps are always the same."""
    rng = np.random.default_rng(seed)
    taste = np.zeros((N_LAYERS, N_EXPERTS))
    tokens = np.zeros((n_steps, N_LAYERS, 1, N_EXPERTS), np.int64)
    scores = np.zeros(tokens.shape)
    for step in range(n_steps):
        taste += rng.normal(size=taste.shape)
        for layer in range(N_LAYERS):
            chosen = np.argsort(-taste[layer] - rng.gumbel(size=N_EXPERTS))[: rng.integers(2, 4)]
            tokens[step, layer, 0, chosen] = rng.integers(1, 5, len(chosen))
            scores[step, layer, 0, chosen] = rng.random(len(chosen))
    shape = (N_LAYERS, 1, N_EXPERTS)
    return Wanted(
        tokens=tokens,
        placed=np.ones(shape, bool),
        popular=np.arange(N_LAYERS * N_EXPERTS, dtype=float).reshape(shape),
        expert=np.broadcast_to(np.arange(N_EXPERTS), shape).astype(np.int64),
        scores=scores,
        dear=(tokens > 0) & (scores > 0.4),
    )


def spec_of(evict: str, pool: str, slots: int = SLOTS, miss: str = "load") -> OffloadSpec:
    held = slots * N_LAYERS if pool == "model" else slots
    return OffloadSpec.model_validate({"evict": evict, "pool": pool, "slots": held, "miss": miss})


def replayed(wanted: Wanted, spec: OffloadSpec, ahead: NDArray[np.bool_] | None = None) -> Replayed:
    """What the slots do, by step, layer, rank and place."""
    shared = spec.pool == "model"
    seen = pooled(wanted) if shared else wanted
    rows = (len(seen.tokens), -1, seen.tokens.shape[-1])
    ties = tie_break(seen, spec).reshape(rows[1:])
    slots = np.full(len(ties), spec.slots)
    asked = None if ahead is None else (in_pool(ahead) if shared else ahead).reshape(rows)
    n_tokens = seen.tokens.reshape(rows)
    costs = MissCosts(host_s=0.3 + 0.2 * n_tokens, device_s=0.4 + 0.0 * n_tokens, copy_s=0.7, call_s=0.1)
    requests = Requests(
        used=seen.used.reshape(rows),
        ahead=asked,
        keeper=keeper_of(seen, spec, slots, ties),
        ties=ties,
        slots=slots,
        placed=np.ones(ties.shape, bool),
        admits=RULES[spec.evict].admits,
    )
    got = replay(requests, split_of(spec.miss, lambda: costs))
    masks = {one.name: getattr(got, one.name) for one in fields(got)}
    shape = wanted.tokens.shape
    return Replayed(**{n: out_of_pool(m, shape) if shared else m.reshape(shape) for n, m in masks.items()})


def rules(names: Any = EVICTIONS) -> list[tuple[str, str]]:
    return [(evict, pool) for evict in names for pool in POOLS if (evict, pool) != ("mrs", "model")]


def test_names_match_implementations() -> None:
    assert set(RULES) == set(EVICTIONS)
    assert set(GUESSES) == set(GUESS_NAMES)


@pytest.mark.parametrize(("evict", "pool"), rules())
class TestEviction:
    def test_every_use_is_served_once_and_no_more_than_asked_for_is_copied(self, evict: str, pool: str) -> None:
        wanted = wanted_with(1)
        ahead = np.random.default_rng(0).random(wanted.tokens.shape) < (0.0 if evict == "static" else 0.1)
        got = replayed(wanted, spec_of(evict, pool), ahead)
        served = got.resident.astype(int) + got.coming + got.loaded + got.hosted
        np.testing.assert_array_equal(served, wanted.used)
        assert not (got.fetched_ahead & ~ahead).any()
        assert not (got.coming & ~got.fetched_ahead).any()

    def test_hits_do_not_exceed_the_slots_or_the_bound(self, evict: str, pool: str) -> None:
        wanted = wanted_with(2)
        got = replayed(wanted, spec_of(evict, pool))
        assert (got.resident.sum(axis=-1) <= (SLOTS if pool == "layer" else SLOTS * N_LAYERS)).all()
        assert got.resident.sum() <= replayed(wanted, spec_of("belady", pool)).resident.sum()

    def test_slots_for_all_miss_nothing(self, evict: str, pool: str) -> None:
        got = replayed(wanted_with(3), spec_of(evict, pool, N_EXPERTS))
        assert not got.loaded.any()


@pytest.mark.parametrize("n_steps", [1, 20])
@pytest.mark.parametrize(("evict", "pool"), rules(CAUSAL))
def test_the_past_does_not_depend_on_the_future(evict: str, pool: str, n_steps: int) -> None:
    whole, cut, spec = wanted_with(4), wanted_with(4, n_steps), spec_of(evict, pool)
    np.testing.assert_array_equal(whole.tokens[:n_steps], cut.tokens)
    np.testing.assert_array_equal(replayed(whole, spec).resident[:n_steps], replayed(cut, spec).resident)


@pytest.mark.parametrize("miss", MISSES)
def test_misses_go_where_their_name_says(miss: str) -> None:
    wanted = wanted_with(5)
    got = replayed(wanted, spec_of("static" if miss == "host" else "lru", "layer", miss=miss))
    missed = wanted.used & ~got.resident
    np.testing.assert_array_equal(got.loaded | got.hosted, missed)
    assert not (got.loaded & got.hosted).any()
    assert got.loaded.any() == (miss != "host")
    assert got.hosted.any() == (miss != "load")


def prefetch_of(by: str) -> PrefetchSpec:
    return PrefetchSpec.model_validate({"by": by, "width": 2} | ({"recall": 0.8} if by == "noisy" else {}))


def fitted_setting(trace: RoutingTrace, fit_tokens: NDArray[np.int64]) -> Setting:
    setting = tiny_setting(tiny_model(), tiny_cluster(1, 1), trace, steps=5)
    return replace(setting, fit_tokens=fit_tokens, fit_loads=np.arange(16).reshape(2, 8))


def wanted_in(setting: Setting) -> Wanted:
    placement = even_placement(setting.model, 1)
    return wanted_of(setting, placement, reduced(setting, placement, ScheduleSpec()))


@pytest.mark.parametrize("by", GUESS_NAMES)
def test_a_guess_names_as_many_as_it_may(by: str) -> None:
    trace = random_trace(tiny_model())
    setting = fitted_setting(trace, np.arange(trace.n_tokens))
    wanted = wanted_in(setting)
    asked = guessed(wanted, setting, prefetch_of(by))
    assert asked.any()
    assert asked.sum(axis=-1).max() <= 2
    assert not (asked & ~wanted.placed).any()


@pytest.mark.parametrize("by", [name for name in GUESS_NAMES if name not in ("oracle", "noisy")])
def test_a_guess_knows_nothing_of_what_it_guesses(by: str) -> None:
    """With other experts in the last step's last layer, the same is asked for; an oracle changes its mind."""
    trace = random_trace(tiny_model())
    sequence = np.arange(trace.n_tokens) // 16
    last = fitted_setting(trace, np.arange(0)).batches.tokens[-1].ravel()
    known = np.flatnonzero(~np.isin(sequence, sequence[last]))
    ids = trace.ids.copy()
    ids[-1][:, last] = (ids[-1][:, last] + 3) % 8
    settings = [fitted_setting(one, known) for one in (trace, replace(trace, ids=ids))]
    own, other = (guessed(wanted_in(one), one, prefetch_of(by)) for one in settings)
    np.testing.assert_array_equal(own, other)
    exact = [guessed(wanted_in(one), one, prefetch_of("oracle")) for one in settings]
    assert (exact[0] != exact[1]).any()


BASE: dict[str, Any] = {
    "name": "offload",
    "model": {"card": "olmoe-1b-7b", "n_layers": 2},
    "cluster": {"node": "rtx-4090-1"},
    "workload": {
        "synthetic": {"tokens": 256, "sequence_tokens": 64, "gate_spread": 1.5},
        "tokens_per_device": 2,
        "steps": 3,
    },
}


@pytest.mark.parametrize(
    "offload",
    [
        *({"slots": 16, "miss": miss} for miss in MISSES if miss != "host"),
        {"slots": 0, "evict": "static", "miss": "host", "defer": 0.5},
        {"slots": 16, "evict": "arc", "prefetch": {"by": "activation", "width": 4, "lead": 2}},
        {"slots": 32, "pool": "model", "evict": "hobbit", "grades": {"slots": 8}},
        {"slots": 32, "pool": "model", "replay": "per-access", "priority": "demand-first", "packet": "1 MiB"}
        | {"prefetch": {"by": "popular", "width": 4}},
    ],
)
def test_both_executors_agree(offload: dict[str, Any]) -> None:
    times_s = []
    for executor in ("vector", "event"):
        fields = {"schedule": {"executor": executor, "layer_overhead": "1 ms"}, "memory": {"offload": offload}}
        spec = ScenarioSpec.model_validate(BASE | fields)
        times_s.append(run(spec, Path(), "test").tables[0].results[0].step_times_s)
    np.testing.assert_allclose(times_s[0], times_s[1], rtol=1e-9)
