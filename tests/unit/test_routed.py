"""Iterations simulated whole: ragged steps, routes of requests, copies and changes of placement."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from placement.copies import copies_between, held_by_rank
from scenarios.errors import ScenarioError, TraceError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.serving_specs import MixSpec, RebalanceSpec
from scenarios.specs import MemorySpec
from sim.priced_steps import execute_schedule
from sim.serving.corrected import Corrected
from sim.serving.loop import Served, serve
from sim.serving.rebalance import Rebalancing, copy_times_s
from sim.serving.routed import Experts, RankTokens, iterations_of
from sim.session import reduced
from tests.oracles.reduction_oracle import expected_reduction
from tests.oracles.test_serving import RoundPrices, requests_with, spec_of
from tests.small import even_placement, random_placement, random_trace, tiny_cluster, tiny_model, tiny_setting
from traces.request_routes import RequestRoutes, request_routes

MODEL = tiny_model()
TRACE = replace(random_trace(MODEL, n_sequences=20), labels=("en", "zh") * 10)
REQUESTS = requests_with(1, n=10, requests_per_s=400.0, output_tokens=15)


def routes_of(mix: Any = (), requests: Any = REQUESTS) -> RequestRoutes:
    mixes = [MixSpec.model_validate(one) for one in mix]
    return request_routes(TRACE, np.arange(20), requests, mixes, np.random.default_rng(0))


def experts_of(**fields: Any) -> Experts:
    setting = tiny_setting(MODEL, tiny_cluster(), TRACE, tokens_per_device=3)
    usual = {
        "setting": setting,
        "placement": even_placement(MODEL, 4),
        "schedule": ScheduleSpec(),
        "memory": MemorySpec(),
        "routes": routes_of(),
    }
    return Experts(**(usual | fields))


def rank_tokens(decode: list[int], prompts: list[int]) -> RankTokens:
    """Requests at these positions: request number i at position decode[i] decodes."""
    pair = [np.array([np.arange(len(part)), part], np.int64).reshape(2, -1) for part in (decode, prompts)]
    return pair[0], pair[1]


@pytest.mark.parametrize("overlap", ["none", "two-batch"])
def test_ranks_that_hold_equally_many_tokens_are_a_regular_step(overlap: str) -> None:
    schedule, setting = ScheduleSpec(overlap=overlap), tiny_setting(MODEL, tiny_cluster(), TRACE, tokens_per_device=4)
    experts = experts_of(setting=setting, schedule=schedule)
    iteration = [rank_tokens([5 + rank, 9, 2, rank], []) for rank in range(4)]
    own = iterations_of(setting, experts.routes, [iteration], schedule.n_parts)
    regular = replace(own, batches=replace(own.batches, ragged=False))
    assert (own.batches.tokens >= 0).all()
    placement = experts.placement
    executed = execute_schedule(regular, placement, reduced(regular, placement, schedule), schedule)
    assert experts.simulated([iteration]).time_s.tolist() == executed.step_times_s.tolist()


def test_tokens_of_ragged_steps_go_where_a_loop_sends_them() -> None:
    experts = experts_of(placement=random_placement(2, 8, 4, 12, seed=1))
    busy = [[rank_tokens([3, 4], [7, 8, 9]), rank_tokens([], []), rank_tokens([1], []), rank_tokens([], [0, 1])]] * 2
    setting = iterations_of(experts.setting, experts.routes, busy, 1)
    got = reduced(setting, experts.placement, ScheduleSpec())
    assert setting.batches.held().tolist() == [[5, 0, 1, 2]] * 2
    alone = [setting.batches.tokens[:, :, [place]] for place in range(setting.batches.tokens.shape[2])]
    whole = experts.simulated(busy)
    assert whole.loads.sum(axis=-1).tolist() == [[8 * MODEL.top_k] * 2] * 2
    counted = np.zeros_like(got.pairs_total)
    for tokens in alone:  # one place of all devices at a time, where each has a token or none has
        for device in range(4):
            index = tokens[:, device, 0]
            if (index < 0).any():
                continue
            filled = np.repeat(index[:, None, None], 4, axis=1)
            one = expected_reduction(TRACE, filled, even_placement(MODEL, 4), setting.layout, chunks=1, dedup="device")
            counted[:, device] += one.pairs.sum(axis=1)[:, device]
    even = reduced(setting, even_placement(MODEL, 4), ScheduleSpec())
    np.testing.assert_array_equal(even.pairs_total, counted)


@pytest.mark.parametrize("every", [1, 7])
def test_stretches_are_iterations_one_by_one(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for least in (2, 1 << 40):
        monkeypatch.setattr("sim.serving.engine.LEAST_STRETCH", least)
        corrected = Corrected(experts=experts_of(), every=every, host_s=0.0)
        runs.append(serve(REQUESTS, spec_of(max_requests=4), 4, 10_000, RoundPrices(), corrected))
    np.testing.assert_allclose(runs[0].end_s, runs[1].end_s, rtol=1e-9)
    np.testing.assert_allclose(runs[0].done_s, runs[1].done_s, rtol=1e-9)


def test_every_iteration_whole_does_not_read_the_tables() -> None:
    class Twice(RoundPrices):
        def iteration_s(self, loads: Any) -> float:
            return 2 * super().iteration_s(loads)

    spec = spec_of(max_requests=4)
    runs = []
    for prices in (RoundPrices(), Twice()):
        corrected = Corrected(experts=experts_of(), every=1, host_s=1e-3)
        runs.append(serve(REQUESTS, spec, 4, 10_000, prices, corrected))
    np.testing.assert_allclose(runs[0].done_s, runs[1].done_s, rtol=1e-9)


def test_requests_read_on_in_sequences_of_their_domain() -> None:
    long = requests_with(2, n=400, input_tokens=10, output_tokens=4)
    routes = routes_of([{"domains": {"en": 1}}, {"at": "10 s", "domains": {"zh": 3, "en": 0}}], long)
    sequence = np.searchsorted(TRACE.offsets, routes.tokens(np.arange(400), np.zeros(400, np.int64)), side="right") - 1
    chinese = sequence % 2 == 1
    arrival_s = long.arrival_s
    assert not chinese[arrival_s < 0.05].any()
    assert chinese[arrival_s > 10].all()
    middle = (arrival_s > 2) & (arrival_s < 8)
    assert chinese[middle].mean() == pytest.approx((arrival_s[middle] / 10).mean(), abs=0.1)
    first = routes.tokens(np.full(40, 7), np.arange(40))
    of_domain = np.flatnonzero(np.repeat(np.arange(20) % 2 == sequence[7] % 2, 16))
    begin = int(np.flatnonzero(of_domain == first[0])[0])
    assert first.tolist() == np.roll(of_domain, -begin)[:40].tolist()
    with pytest.raises(TraceError, match="did you mean 'zh'"):
        routes_of([{"domains": {"zhh": 1}}])


def test_copies_bring_every_rank_what_it_lacked_from_near() -> None:
    before, after = (random_placement(2, 8, 4, 16, seed) for seed in range(2))
    copies = copies_between(before, after, ranks_per_node=2)
    rows = list(zip(copies.layer, copies.expert, copies.source, copies.target, strict=True))
    for layer in range(2):
        held, wanted = held_by_rank(before, layer), held_by_rank(after, layer)
        lacked = {(expert, rank) for rank, expert in np.argwhere(wanted & ~held).tolist()}
        assert lacked == {(expert, target) for at, expert, _, target in rows if at == layer}
        for at, expert, source, target in rows:
            if at == layer:
                assert held[source, expert]
                assert source // 2 == target // 2 or not held[target // 2 * 2 : target // 2 * 2 + 2, expert].any()
    assert len(copies_between(before, before, 2)) == 0
    setting = tiny_setting(MODEL, tiny_cluster(), TRACE)
    one = replace(copies, **{name: getattr(copies, name)[:1] for name in ("layer", "expert", "source", "target")})
    time_s, moved_bytes = copy_times_s(setting, one)
    assert moved_bytes == {"intra": MODEL.expert_bytes}
    assert time_s == pytest.approx(MODEL.expert_bytes / setting.cluster.intra.effective_bytes_per_s)


def rebalanced(**fields: Any) -> tuple[Served, Rebalancing]:
    corrected = Corrected(experts=experts_of(), every=5, host_s=0.0, n_loads=100)
    spec = RebalanceSpec.model_validate({"every": 20, "placement": {"solver": "greedy"}} | fields)
    assert spec.placement is not None
    rebalancing = Rebalancing(spec=spec, plan=spec.placement, seed=0, corrected=corrected)
    corrected.look, corrected.look_every = rebalancing.look, spec.every
    return serve(REQUESTS, spec_of(max_requests=4), 4, 10_000, RoundPrices(), corrected), rebalancing


def test_a_placement_changes_when_its_copies_are_there() -> None:
    served, rebalancing = rebalanced(solve="2 ms", link_frac=0.001)
    change, experts = rebalancing.changes[0], rebalancing.corrected.experts
    assert experts.placement.name == "greedy"
    assert change.begun_s == pytest.approx(served.end_s[19])
    assert change.copying_s == pytest.approx(change.begun_s + 0.002)
    begins_s = served.end_s - served.busy_s
    assert not ((begins_s < change.done_s - 1e-9) & (change.done_s < served.end_s - 1e-9)).any()  # between iterations
    assert change.moved_bytes["intra"] % MODEL.expert_bytes == 0
    copied_s = change.moved_bytes["intra"] / experts.setting.cluster.intra.effective_bytes_per_s / 0.001
    assert copied_s / 4 <= change.done_s - change.copying_s  # four ports, busy at once at best


def test_loads_that_have_not_drifted_change_nothing() -> None:
    served, rebalancing = rebalanced(drift=0.999)
    plain = serve(
        REQUESTS,
        spec_of(max_requests=4),
        4,
        10_000,
        RoundPrices(),
        Corrected(experts=experts_of(), every=5, host_s=0.0),
    )
    assert rebalancing.changes == []
    np.testing.assert_allclose(served.done_s, plain.done_s, rtol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rebalance": {}}, "give them routes"),
        (
            {"routes": {"mix": [{"at": "2 s", "domains": {"a": 1}}, {"at": "1 s", "domains": {"a": 1}}]}},
            "times must rise",
        ),
        ({"routes": {"mix": [{"domains": {"a": 0}}]}}, "positive share"),
    ],
)
def test_what_says_nothing_about_routes_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**fields)


def test_a_solver_that_looks_beyond_loads_is_refused() -> None:
    with pytest.raises(ScenarioError, match="plans from more than loads"):
        rebalanced(placement={"solver": "joint"})
