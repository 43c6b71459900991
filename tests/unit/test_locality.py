"""SRP and SCH against hand-counted windows."""

import numpy as np
import pytest

import traces.locality as locality
from scenarios.errors import TraceError
from tests.toy_traces import trace_of
from traces.locality import segment_cache, segment_routing, segment_routing_per_layer


def test_srp_of_two_windows_counted_by_hand():
    # windows (0,0) and (0,1): counts 2,0 and 1,1, so H = [1, 2, 1] and 4 activations.
    # tau 2: 2*2/(2+4) = 2/3; tau 1: matches 4, predictions 2*3 = 6, 2*4/(6+4) = 0.8
    result = segment_routing(trace_of([[[0]], [[0]], [[1]]], 2), 2)
    assert (result.srp, result.rho_hat, result.tau, result.windows) == (0.8, 1.5, 1, 2)


def test_srp_prefers_the_high_threshold_where_strays_cost_more():
    # one window of 4: expert 0 four times, experts 1..4 once. tau 2: 2*4/(4+8) = 2/3; tau 1: 2*8/(4*5+8) = 4/7
    result = segment_routing(trace_of([[[0, e]] for e in (1, 2, 3, 4)], 8), 4)
    assert result.srp == pytest.approx(2 / 3)
    assert (result.tau, result.rho_hat) == (2, 0.5)


def test_routing_that_never_changes_is_served_perfectly():
    result = segment_routing(trace_of([[[2, 5], [1, 0]]] * 9, 6), 4)
    assert (result.srp, result.rho_hat, result.windows) == (1.0, 1.0, 6)


def test_windows_do_not_cross_sequences_and_short_sequences_have_none():
    tokens = [[[0]]] * 3 + [[[1]]] * 3 + [[[2]]]
    assert segment_routing(trace_of(tokens, 4, [3, 3, 1]), 3).srp == 1.0
    assert segment_routing(trace_of(tokens, 4, [3, 3, 1]), 3).windows == 2
    assert segment_routing(trace_of(tokens, 4), 3).srp < 1.0


def test_one_threshold_for_all_layers_is_not_one_per_layer():
    # layer 0 as in the test above (best tau 2), layer 1 with two experts twice each (best tau 1 or 2: F1 = 2/3)
    tokens = [[[0, e], [6, 7] if e < 3 else [4, 5]] for e in (1, 2, 3, 4)]
    trace = trace_of(tokens, 8)
    layers = segment_routing_per_layer(trace, 4)
    assert [layer.srp for layer in layers] == pytest.approx([2 / 3, 2 / 3])
    # pooled: H[1] = 4, H[2] = 4, H[4] = 1; tau 1: 2*16/(36+16); tau 2: 2*12/(20+16); tau 4: 2*4/(4+16)
    pooled = segment_routing(trace, 4)
    assert pooled.srp == pytest.approx(2 / 3)
    assert (pooled.tau, pooled.rho_hat) == (2, 20 / 16)


def test_padding_is_no_activation():
    tokens = [[[0, 255]], [[0, 3]], [[255, 255]], [[0, 255]]]
    # windows of 2: counts (2,0,0,1), (1,0,0,1), (1,0,0,0): H[1] = 4, H[2] = 1 of 6 activations
    # tau 2: 2*2/(2+6) = .5; tau 1: 2*6/(10+6) = .75
    result = segment_routing(trace_of(tokens, 4, padding=True), 2)
    assert (result.srp, result.tau, result.rho_hat) == (0.75, 1, 10 / 6)


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(5)
    tokens = np.argsort(rng.random((3000, 2, 8)), axis=2)[:, :, :2].tolist()
    trace = trace_of(tokens, 8, [1000, 1500, 500])
    whole = segment_routing(trace, 700)
    monkeypatch.setattr(locality, "_BLOCK_CELLS", 8 * 1024)
    assert segment_routing(trace, 700) == whole


def test_segment_cache_keeps_what_comes_soon_counted_by_hand():
    # pool of 2: 0 and 1 fill it (hits by convention), 2 must evict. A window of 1 token sees nothing after it: the
    # older (0) goes and misses next. A window of 2 sees 0 coming: 1 goes, 0 hits.
    # A window of 3 in the longer sequence sees 0 and 1 once each: the older (0) goes and misses, then 1 hits.
    trace = trace_of([[[e]] for e in (0, 1, 2, 0)], 3)
    assert segment_cache(trace, 1, [2]).hits.tolist() == [2]
    assert segment_cache(trace, 2, [2]).hits.tolist() == [3]
    longer = trace_of([[[e]] for e in (0, 1, 2, 0, 1)], 3)
    assert segment_cache(longer, 3, [2]).hits.tolist() == [3]


def test_segment_cache_takes_every_nth_sequence():
    trace = trace_of([[[0]], [[0]], [[1]], [[2]], [[0]], [[0]]], 3, [2, 2, 2])
    curve = segment_cache(trace, 4, [1, 3], every_nth_sequence=2)
    assert (curve.accesses, curve.hits.tolist(), curve.policy) == (4, [4, 4], "segment-4")


def test_impossible_windows_are_refused():
    trace = trace_of([[[0]], [[1]]], 2)
    with pytest.raises(TraceError, match="longest sequence has 2 tokens"):
        segment_routing(trace, 3)
    with pytest.raises(TraceError, match="choose a window of 1 to 2"):
        segment_routing(trace, 0)
    with pytest.raises(TraceError, match="window 0 and sequence stride 1"):
        segment_cache(trace, 0, [1])
    with pytest.raises(TraceError, match="from 1 to 2 experts, got \\[3\\]"):
        segment_cache(trace, 1, [3])
