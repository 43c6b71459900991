"""Served loads against a loop over requests, Lindley's recursion, and conservation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from scenarios.errors import MemoryInfeasible
from scenarios.serving_specs import RequestsSpec, ServingSpec
from sim.serving.loop import Served, serve
from sim.serving.measures import e2e_s, serving_metrics, tpot_s, ttft_s
from sim.serving.prices import Line, Surface, TablePrices
from sim.serving.ranks import RankLoad
from tests.oracles.naive_engine import naive_serve
from traces.requests import RequestTrace, made_up


class RoundPrices:
    """1 ms and what tokens, contexts and pairs add; rounds differ, so that orders of sums show."""

    def iteration_s(self, loads: Sequence[RankLoad]) -> float:
        own = [1e-4 * r.decoding + 3e-7 * r.context_tokens + 1e-5 * r.prompt_tokens for r in loads]
        return 1e-3 + max(own) + 1e-9 * sum(r.attended_pairs for r in loads) + 1e-5 * sum(r.finishing for r in loads)

    def stretch_s(self, loads: Sequence[RankLoad], n: int) -> Any:
        grown = ([r._replace(context_tokens=r.context_tokens + i * r.decoding) for r in loads] for i in range(n))
        return np.array([self.iteration_s(each) for each in grown])


def requests_with(seed: int, n: int = 60, **fields: Any) -> RequestTrace:
    spec = {"requests_per_s": 20.0, "n": n, "input_tokens": 60, "output_tokens": 30} | fields
    return made_up(RequestsSpec.model_validate(spec), np.random.default_rng(seed))


def spec_of(**fields: Any) -> ServingSpec:
    usual = {"requests": {"requests_per_s": 1.0}, "token_budget": 128, "max_requests": 8, "block_tokens": 4}
    return ServingSpec.model_validate(usual | fields)


CASES: list[tuple[dict[str, Any], int, int]] = [
    ({}, 1, 10_000),
    ({"router": "least-tokens"}, 3, 10_000),
    ({"router": "round-robin"}, 4, 200),
    ({"max_requests": 32, "block_tokens": 16}, 1, 24),  # pre-empts
    ({"max_requests": 16, "token_budget": 16}, 2, 100),  # prompts in many chunks, and the budget may be full
    ({"cached_frac": 0.5}, 2, 120),
    ({"block_tokens": 1}, 1, 400),
]


@pytest.mark.parametrize(("fields", "n_ranks", "n_blocks"), CASES)
@pytest.mark.parametrize("rate", [2.0, 20.0, 1000.0])
def test_counters_equal_a_loop_over_requests(fields: dict[str, Any], n_ranks: int, n_blocks: int, rate: float) -> None:
    spec, trace = spec_of(**fields), requests_with(int(rate), requests_per_s=rate)
    got = serve(trace, spec, n_ranks, n_blocks, RoundPrices())
    first_s, done_s, preempted = naive_serve(trace, spec, n_ranks, n_blocks, RoundPrices().iteration_s)
    np.testing.assert_allclose(got.first_token_s, first_s, rtol=1e-12)
    np.testing.assert_allclose(got.done_s, done_s, rtol=1e-12)
    assert got.n_preempted == preempted
    if n_blocks == 24 and rate == 1000.0:
        assert preempted > 0


def test_without_stretches_counters_are_a_loop_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.serving.engine.LEAST_STRETCH", 1 << 40)
    for fields, n_ranks, n_blocks in CASES:
        spec, trace = spec_of(**fields), requests_with(5, requests_per_s=50.0)
        got = serve(trace, spec, n_ranks, n_blocks, RoundPrices())
        first_s, done_s, _ = naive_serve(trace, spec, n_ranks, n_blocks, RoundPrices().iteration_s)
        assert got.first_token_s.tolist() == first_s
        assert got.done_s.tolist() == done_s


def test_a_single_server_is_lindleys_queue() -> None:
    """One request at a time: it waits W' = max(0, W + S - gap), with the service time of its own iterations."""
    trace, prices = requests_with(3, n=200, requests_per_s=8.0), RoundPrices()
    got = serve(trace, spec_of(max_requests=1, token_budget=4096), 1, 10_000, prices)
    services = []
    for n_in, n_out in zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True):
        service = prices.iteration_s([RankLoad(0, 0, n_in, n_in * (n_in + 1) // 2, 1)])
        services.append(service + sum(prices.iteration_s([RankLoad(1, n_in + i)]) for i in range(1, n_out)))
    waits = [0.0]
    for service, gap in zip(services, np.diff(trace.arrival_s), strict=False):
        waits.append(max(0.0, waits[-1] + service - gap))
    np.testing.assert_allclose(e2e_s(got), np.array(waits) + services, rtol=1e-9)
    assert max(waits) > 0.1


def logged(served: Served) -> None:
    begins = served.end_s - served.busy_s
    # An iteration begins when the one before ends, or with an arrival that found nothing to do.
    gaps = begins[1:] - served.end_s[:-1]
    idle = np.flatnonzero(gaps > 1e-9) + 1
    arrivals = served.requests.arrival_s
    assert all(np.abs(arrivals - begins[i]).min() < 1e-9 for i in idle)
    for i in idle:
        inside = (arrivals < begins[i] - 1e-9) & (served.done_s > begins[i] + 1e-9)
        assert not inside.any()


@pytest.mark.parametrize("rate", [1.0, 10.0, 200.0])
def test_work_is_conserved(rate: float) -> None:
    trace = requests_with(1, n=120, requests_per_s=rate)
    spec = spec_of()
    got = serve(trace, spec, 2, 500, RoundPrices())
    logged(got)
    assert got.prompt_tokens.sum() == trace.input_tokens.sum()
    assert got.decoding.sum() == (trace.output_tokens - 1).sum()
    assert got.used_blocks[-1] == 0
    assert (got.most_tokens <= spec.token_budget).all()
    assert (got.used_blocks <= 2 * 500).all()
    assert (ttft_s(got) > 0).all() and (e2e_s(got) >= ttft_s(got)).all()


def test_littles_law_holds_on_the_log() -> None:
    """Requests in the system, integrated over time, are the sum of what each stays: exact on any path."""
    trace = requests_with(2, n=150, requests_per_s=30.0)
    got = serve(trace, spec_of(), 1, 10_000, RoundPrices())
    events = sorted([(t, 1) for t in trace.arrival_s] + [(t, -1) for t in got.done_s])
    area, inside, before = 0.0, 0, 0.0
    for time_s, change in events:
        area += inside * (time_s - before)
        inside, before = inside + change, time_s
    assert area == pytest.approx(float(e2e_s(got).sum()))
    # The log counts the same requests: those decoding for whole iterations, plus queue, prompts and arrivals within.
    decoding = float((got.decoding * got.busy_s).sum())
    assert decoding == pytest.approx(float((got.done_s - got.first_token_s).sum()))


def test_metrics_of_one_request_by_hand() -> None:
    trace = RequestTrace(
        arrival_s=np.array([0.0]), input_tokens=np.array([100]), output_tokens=np.array([3]), source="hand"
    )
    got = serve(trace, spec_of(), 1, 100, RoundPrices())
    prompt_s = 1e-3 + 100e-5 + 5050e-9 + 1e-5
    decode_s = [1e-3 + 1e-4 + 3e-7 * (100 + i) for i in (1, 2)]
    assert got.first_token_s[0] == pytest.approx(prompt_s)
    assert tpot_s(got)[0] == pytest.approx(np.mean(decode_s))
    slo = ServingSpec.model_validate({"requests": {"requests_per_s": 1}, "slo": {"ttft": "1 s", "tpot": "1 ms"}}).slo
    metrics = serving_metrics(got, slo, 0.0)
    assert metrics["slo_frac"] == 0.0  # 1.13 ms a token
    assert metrics["tokens_per_s"] == pytest.approx(3 / (prompt_s + sum(decode_s)))
    assert metrics["goodput_tokens_per_s"] == 0.0


def test_stretches_of_tables_are_their_iterations() -> None:
    """Vectors over a stretch against one iteration after another, across the points of the tables."""
    sizes, contexts = [1.0, 2.0, 8.0, 32.0], [1.0, 64.0, 256.0]
    rng = np.random.default_rng(0)
    rising = lambda n: np.sort(rng.random(n)).tolist()  # noqa: E731
    surface = Surface(sizes, [Line(contexts, rising(3)) for _ in sizes])
    line = Line(sizes, rising(4))
    prices = TablePrices(
        steps={"decode": Line(sizes, rising(4)), "prefill": line},
        local=line,
        head=Line(sizes, rising(4)),
        decode=surface,
        prompts=surface,
        attention_tp=1,
        host_s=0.1,
    )
    for loads in (
        [RankLoad(3, 90)],
        [RankLoad(3, 90), RankLoad(), RankLoad(40, 4000)],
        [RankLoad(1, 60), RankLoad(5, 9)],
    ):
        got = prices.stretch_s(loads, 300)
        grown = [[r._replace(context_tokens=r.context_tokens + i * r.decoding) for r in loads] for i in range(300)]
        np.testing.assert_allclose(got, [prices.iteration_s(each) for each in grown], rtol=1e-12)


def test_a_request_beyond_the_cache_is_refused() -> None:
    with pytest.raises(MemoryInfeasible, match="the KV cache of a rank holds"):
        serve(requests_with(0), spec_of(), 1, 10, RoundPrices())
