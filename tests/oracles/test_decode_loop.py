"""Continuous batching against Lindley's recursion, and against a full batch written out."""

import numpy as np
import pytest

from scenarios.errors import ScenarioError
from sim.decode_loop import serve


class Prices:
    """Times by the size of the batch alone; notes the batches."""

    def __init__(self, prefill_s, base_s, more_s):
        self.values, self.seen = (prefill_s, base_s, more_s), []

    def prefill_s(self, request):
        return self.values[0] * (1 + request % 3)

    def decode_s(self, requests, written):
        self.seen.append((list(requests), list(written)))
        return self.values[1] + self.values[2] * len(requests)


def test_one_request_at_a_time_is_a_queue_with_one_server():
    """Lindley: begin_i = max(arrival_i, done_{i-1}); its service is the prefill and answer - 1 steps."""
    rng = np.random.default_rng(0)
    arrival_s, answers = np.cumsum(rng.exponential(5.0, 200)), rng.integers(2, 9, 200)
    prices = Prices(0.5, 0.3, 0.2)
    served = serve(arrival_s, answers, 1, prices)
    done_s = 0.0
    for request in range(200):
        begin_s = max(arrival_s[request], done_s)
        first_s = begin_s + prices.prefill_s(request)
        done_s = first_s + 0.5 * (answers[request] - 1)
        assert served.first_token_s[request] == pytest.approx(first_s, rel=1e-12)
        assert served.done_s[request] == pytest.approx(done_s, rel=1e-12)


def test_a_batch_that_begins_together_ends_by_its_answers():
    """Prefills of 1, 2 and 3; then steps of 0.3 + 0.2 n while n requests are left; a fourth finds a place at last."""
    served = serve(np.zeros(4), np.array([2, 3, 5, 2]), 3, Prices(1.0, 0.3, 0.2))
    assert served.first_token_s[:3].tolist() == [1.0, 3.0, 6.0]
    # step 1 (three): 6.9, request 0 done; prefill of 3 takes 1: 7.9; step 2 (three): 8.8, requests 1 and 3 done
    assert served.done_s == pytest.approx([6.9, 8.8, 9.8, 8.8])
    assert served.first_token_s[3] == pytest.approx(7.9)
    assert served.tpot_s[2] == pytest.approx((9.8 - 6.0) / 4)
    assert served.total_s == pytest.approx(9.8)


def test_every_token_is_written_once_and_batches_keep_their_limit():
    rng = np.random.default_rng(1)
    answers = rng.integers(2, 20, 60)
    prices = Prices(0.1, 0.05, 0.01)
    serve(np.cumsum(rng.exponential(0.2, 60)), answers, 5, prices)
    written = [(request, place) for batch in prices.seen for request, place in zip(*batch, strict=True)]
    assert sorted(written) == [(request, place) for request in range(60) for place in range(1, answers[request])]
    assert max(len(requests) for requests, _ in prices.seen) == 5


def test_wrong_loads_are_refused():
    with pytest.raises(ScenarioError, match="must not decrease"):
        serve(np.array([1.0, 0.5]), np.array([2, 2]), 1, Prices(1, 1, 1))
    with pytest.raises(ScenarioError, match="an answer of 1 tokens"):
        serve(np.array([1.0]), np.array([1]), 1, Prices(1, 1, 1))
