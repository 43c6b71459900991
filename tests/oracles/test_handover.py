"""Prefill and decode apart, against callbacks on a heap, Kiefer and Wolfowitz's recursion, and by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from scenarios.errors import MemoryInfeasible
from sim.serving.handover import Side, Wire, serve_apart
from sim.serving.loop import Served
from sim.serving.ranks import RankLoad
from tests.oracles.naive_handover import Apart
from tests.oracles.test_serving import RoundPrices, requests_with, spec_of
from traces.requests import RequestTrace


def side_of(n_ranks: int, n_blocks: int, n_engines: int = 1, **fields: Any) -> Side:
    spec = spec_of(**fields)
    return Side(spec=spec, n_ranks=n_ranks, n_blocks=n_blocks, prices=RoundPrices(), n_engines=n_engines)


def wire_of(layerwise: bool, bytes_per_s: float = 1e5, latency_s: float = 1e-4) -> Wire:
    return Wire(
        moved_bytes=lambda tokens: 10.0 * tokens + 3,
        bytes_per_s=bytes_per_s,
        latency_s=latency_s,
        n_layers=4,
        layerwise=layerwise,
    )


CASES = [
    (side_of(1, 10_000), side_of(1, 10_000)),
    (side_of(2, 200, token_budget=16), side_of(3, 300, router="least-tokens")),  # prompts in many chunks
    (side_of(1, 60, 3, router="least-tokens"), side_of(2, 80, max_requests=4)),  # places are short
    (side_of(1, 60), side_of(1, 70, max_requests=32)),  # pre-empts
    (side_of(2, 100, 2), side_of(1, 200, max_requests=2)),
]


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("bytes_per_s", [3e3, 1e6])
def test_engines_apart_equal_callbacks_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, layerwise: bool, bytes_per_s: float
) -> None:
    monkeypatch.setattr("sim.serving.engine.LEAST_STRETCH", 1 << 40)
    wire, preempted, waited = wire_of(layerwise, bytes_per_s), 0, 0
    for number, (prefill, decode) in enumerate(CASES):
        trace = requests_with(number, n=30, requests_per_s=50.0, length_cv=0.6)
        got, naive = serve_apart(trace, prefill, decode, wire), Apart(trace, prefill, decode, wire)
        assert got.handed is not None
        assert got.first_token_s.tolist() == naive.first_s
        assert got.done_s.tolist() == naive.done_s
        np.testing.assert_array_equal(got.handed.late_s, naive.late_s)
        np.testing.assert_array_equal(got.handed.waited_s, naive.waited_s)
        preempted += got.n_preempted
        waited += int(np.nanmax(got.handed.waited_s) > 0.05)
    assert preempted and waited


def test_stretches_of_the_decoding_side_change_nothing() -> None:
    trace, (prefill, decode) = requests_with(1, requests_per_s=20.0), CASES[1]
    got, naive = serve_apart(trace, prefill, decode, wire_of(True)), Apart(trace, prefill, decode, wire_of(True))
    np.testing.assert_allclose(got.done_s, naive.done_s, rtol=1e-12)


class FixedPrices(RoundPrices):
    def iteration_s(self, loads: Sequence[RankLoad]) -> float:
        del loads
        return 0.25


def test_engines_with_fixed_service_are_kiefer_and_wolfowitz() -> None:
    """c servers: a request waits for the least of the vector of work left, which its service is then added to.

    With equal service times taking turns is the same as going to the first free one (Kiefer and Wolfowitz, 1955).
    """
    n_servers = 3
    trace = requests_with(3, n=300, requests_per_s=11.0)
    trace = RequestTrace(
        arrival_s=trace.arrival_s, input_tokens=np.full(300, 5), output_tokens=np.ones(300, int), source="one token"
    )
    spec = spec_of(max_requests=1)
    side = Side(spec=spec, n_ranks=1, n_blocks=100, prices=FixedPrices(), n_engines=n_servers)
    got = serve_apart(trace, side, side, wire_of(True))
    work, waits, before = np.zeros(n_servers), [], 0.0
    for arrival_s in trace.arrival_s:
        work = np.sort(np.maximum(work - (arrival_s - before), 0.0))
        waits.append(work[0])
        work[0] += 0.25
        before = arrival_s
    np.testing.assert_allclose(got.done_s - trace.arrival_s - 0.25, waits, atol=1e-9)
    assert max(waits) > 0.25


@pytest.mark.parametrize("layerwise", [True, False])
def test_one_request_by_hand(layerwise: bool) -> None:
    """Two chunks of a prompt of 40 tokens; three quarters of a layerwise chunk cross while it is computed."""
    trace = RequestTrace(
        arrival_s=np.zeros(1), input_tokens=np.array([40]), output_tokens=np.array([3]), source="by hand"
    )
    prefill, decode, prices = side_of(1, 100, token_budget=30), side_of(1, 100), RoundPrices()
    got = serve_apart(trace, prefill, decode, wire_of(layerwise, 1e6))
    chunks_s = [prices.iteration_s([RankLoad(0, 0, 30, 465)]), prices.iteration_s([RankLoad(0, 0, 10, 355, 1)])]
    decodes_s = [prices.iteration_s([RankLoad(1, 41)]), prices.iteration_s([RankLoad(1, 42)])]
    late_s = (1e-4 / 4 if layerwise else 403e-6) + 1e-4
    assert got.first_token_s[0] == pytest.approx(sum(chunks_s))
    assert got.handed is not None and got.handed.moved_bytes == 403
    assert got.handed.late_s[0] == pytest.approx(late_s)
    assert got.done_s[0] == pytest.approx(sum(chunks_s) + late_s + sum(decodes_s))


def conserved(got: Served) -> None:
    assert got.handed is not None
    trace = got.requests
    prompts = sum(each["prompt_tokens"].sum() for each in got.handed.prefill_logs)
    assert prompts == trace.input_tokens.sum()
    assert (got.decoding * got.n).sum() == (trace.output_tokens - 1).sum()
    assert got.used_blocks[-1] == 0 and got.handed.prefill_logs[0]["end_s"][-1] < got.end_s[-1]


def test_work_is_conserved_and_what_does_not_fit_is_refused() -> None:
    trace = requests_with(1, n=120, requests_per_s=40.0)
    conserved(serve_apart(trace, side_of(2, 500), side_of(2, 500), wire_of(False)))
    for prefill, decode in ((side_of(1, 10), side_of(1, 500)), (side_of(1, 500), side_of(1, 10))):
        with pytest.raises(MemoryInfeasible, match="the KV cache of a rank holds"):
            serve_apart(trace, prefill, decode, wire_of(False))
