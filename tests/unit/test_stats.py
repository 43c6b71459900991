"""Trace statistics against numbers derived by hand, and against figures known of public traces."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenarios.errors import TraceError
from tests.shared import shared_file
from traces import stats
from traces.routing import Provenance, RoutingTrace


def make_trace(
    ids: NDArray[Any], lengths: Sequence[int], n_experts: int, *, weight_ordered: bool = False, variable_k: bool = False
) -> RoutingTrace:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return RoutingTrace(
        ids=ids,
        n_experts=n_experts,
        offsets=offsets,
        positions=(np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)).astype(np.int32),
        moe_layers=tuple(range(len(ids))),
        phase="decode",
        provenance=Provenance(model="toy", source="test", kind="captured"),
        weight_ordered=weight_ordered,
        variable_k=variable_k,
    )


def hand_trace() -> RoutingTrace:
    """Sequences of 3 and 2 tokens, top-2 of 4. Layer 0: {0,1} {0,2} {1,2} | {3,0} {1,2}. Layer 1: {2,3} throughout."""
    layer0 = [[0, 0, 1, 3, 1], [1, 2, 2, 0, 2]]
    layer1 = [[2] * 5, [3] * 5]
    return make_trace(np.array([layer0, layer1], np.uint8), [3, 2], 4, weight_ordered=True)


def varying_trace() -> RoutingTrace:
    """One sequence {0,1} {0} {1}, then itself in layer 1; 255 marks the unused places."""
    layer = [[0, 0, 255], [1, 255, 1]]
    return make_trace(np.array([layer, layer], np.uint8), [3], 2, variable_k=True)


def public_trace(name: str, n_experts: int) -> RoutingTrace:
    """A public trace, ids [token, layer, k], read without the importers."""
    with np.load(shared_file(f"data/traces/{name}")) as arrays:
        ids, offsets = np.ascontiguousarray(arrays["ids"].transpose(1, 2, 0)), arrays["offsets"]
    return make_trace(ids, np.diff(offsets).tolist(), n_experts, weight_ordered=True)


def gpt_oss() -> RoutingTrace:
    return public_trace("gptoss20b_fingerprint/ids.npz", 32)


def flame() -> RoutingTrace:
    return public_trace("flame_moe_290m_sample/ids_probs_deinterleaved.npz", 64)


def test_loads_of_the_hand_trace() -> None:
    loads = stats.expert_loads(hand_trace())
    assert loads.tolist() == [[3, 3, 3, 1], [0, 0, 5, 5]]
    assert stats.load_imbalance(loads).tolist() == [3 / 2.5, 2.0]
    # Layer 0: deviations .5 .5 .5 -1.5 from 2.5, variance 3/4.
    assert stats.load_cv(loads).tolist() == pytest.approx([0.75**0.5 / 2.5, 1.0])


def test_reuse_of_the_hand_trace() -> None:
    trace = hand_trace()
    # Layer 0, lag 1: 1 + 1 | 0 shared of 3 pairs x 2; the pair that crosses the sequences does not count.
    assert stats.adjacent_reuse(trace).tolist() == pytest.approx([2 / 6, 1.0])
    assert stats.adjacent_reuse(trace, lag=2).tolist() == [1 / 2, 1.0]
    # Sequence 0: every pair shares 1 of 2; sequence 1: none. Weights 3 and 2 tokens.
    assert stats.sequence_reuse(trace).tolist() == pytest.approx([(3 * 0.5 + 2 * 0.0) / 5, 1.0])
    # q = .6 .6 .6 .2 and 0 0 1 1.
    assert stats.popularity_reuse(stats.expert_loads(trace), 2.0).tolist() == pytest.approx([1.12 / 2, 1.0])


def test_transitions_and_coactivation_of_the_hand_trace() -> None:
    trace = hand_trace()
    assert stats.transition_counts(trace, 0).tolist() == [[0, 0, n, n] for n in (3, 3, 3, 1)]
    assert stats.transition_counts(trace, 0, top1=True)[:, 2].tolist() == [2, 2, 0, 1]
    assert stats.affinity_bits(trace).tolist() == pytest.approx([0.0], abs=1e-12)
    assert stats.coactivation(trace, 0).tolist() == [[3, 1, 1, 1], [1, 3, 2, 0], [1, 2, 3, 0], [1, 0, 0, 1]]


def test_distinct_experts_of_the_hand_trace() -> None:
    assert stats.distinct_experts(hand_trace(), 2).tolist() == [[3, 2], [4, 2]]
    assert stats.distinct_experts(hand_trace(), 5, np.random.default_rng(0)).tolist() == [[4, 2]]


def test_unused_places_count_nowhere() -> None:
    trace = varying_trace()
    assert stats.expert_loads(trace).tolist() == [[2, 2]] * 2
    assert stats.mean_k(trace).tolist() == pytest.approx([4 / 3] * 2)
    # Pairs {0,1}-{0} share 1 of 2, {0}-{1} 0 of 1.
    assert stats.adjacent_reuse(trace).tolist() == pytest.approx([1 / 3] * 2)
    # n = 2, 2 of 3 tokens: 4 / (3 * 2) shared per pair, over 4/3 experts.
    assert stats.sequence_reuse(trace).tolist() == pytest.approx([0.5] * 2)
    assert stats.transition_counts(trace, 0).tolist() == [[2, 1], [1, 2]]
    assert stats.distinct_experts(trace, 1).tolist() == [[2, 2], [1, 1], [1, 1]]
    assert stats.popularity_reuse(stats.expert_loads(trace), stats.mean_k(trace)) == pytest.approx([2 / 3] * 2)


@pytest.mark.parametrize(
    ("counts", "bits", "share"),
    [
        ([[2, 0], [0, 2]], 1.0, 1.0),
        ([[3, 1], [1, 3]], 1 - 0.8112781, 1 - 0.8112781),  # 1 - H(1/4)
        ([[6, 2], [3, 1]], 0.0, 0.0),
        ([[4, 4], [0, 0]], 0.0, 0.0),
    ],
)
def test_mutual_information(counts: list[list[int]], bits: float, share: float) -> None:
    assert stats.mutual_information_bits(np.array(counts)) == pytest.approx(bits, abs=1e-7)
    assert stats.normalised_mutual_information(np.array(counts)) == pytest.approx(share, abs=1e-7)


def test_summary_of_short_sequences_leaves_reuse_open() -> None:
    summary = stats.summarise(make_trace(np.array([[[0, 1, 1]]], np.uint8), [1, 1, 1], 4))
    assert summary.adjacent_reuse is None
    assert summary.sequence_reuse is None
    assert summary.lag8_reuse is None
    assert summary.affinity_bits.shape == (0,)
    assert summary.unused_experts.tolist() == [2]
    assert summary.uniform_reuse.tolist() == [0.25]
    with pytest.raises(ValueError, match="read-only"):
        summary.load_cv[0] = 1.0


def test_refusals_name_the_limit() -> None:
    trace = hand_trace()
    with pytest.raises(TraceError, match="the longest has 3 tokens"):
        stats.adjacent_reuse(trace, lag=3)
    with pytest.raises(TraceError, match=r"layers 0\.\.1"):
        stats.transition_counts(trace, 1)
    with pytest.raises(TraceError, match="6 tokens cannot be cut from a trace of 5"):
        stats.distinct_experts(trace, 6)
    with pytest.raises(TraceError, match="ordered by gate weight"):
        stats.transition_counts(varying_trace(), 0, top1=True)
    with pytest.raises(TraceError, match="every sequence of the trace has one"):
        stats.sequence_reuse(make_trace(np.zeros((1, 1, 2), np.uint8), [1, 1], 1))


@pytest.mark.slow
def test_gpt_oss_20b_has_the_figures_of_its_conversion() -> None:
    """AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting @ 72b368f, as measured when the trace was converted:
    reuse .437, layers .19-.59; load max/mean 2.62, worst 3.78 in layer 23."""
    summary = stats.summarise(gpt_oss())
    assert (summary.n_tokens, summary.n_sequences, summary.longest_sequence_tokens) == (215438, 703, 511)
    reuse, imbalance = summary.adjacent_reuse, summary.load_imbalance
    assert reuse is not None
    assert reuse.mean() == pytest.approx(0.437, abs=5e-4)
    assert (reuse.min(), reuse.max()) == pytest.approx((0.19, 0.59), abs=5e-3)
    assert imbalance.mean() == pytest.approx(2.62, abs=5e-3)
    assert imbalance.argmax() == 23
    assert imbalance[23] == pytest.approx(3.78, abs=5e-3)


def test_flame_moe_has_the_figures_of_its_conversion() -> None:
    """FLAME-MoE-290M sample of Akash-N-Pai/DynaNDE-Simulator @ f274466, as measured when it was converted:
    reuse .213 at lag 1, .115 at lag 8; load max/mean 1.53."""
    summary = stats.summarise(flame())
    assert summary.adjacent_reuse is not None
    assert summary.lag8_reuse is not None
    assert summary.adjacent_reuse.mean() == pytest.approx(0.213, abs=6e-4)
    assert summary.lag8_reuse.mean() == pytest.approx(0.115, abs=5e-4)
    assert summary.load_imbalance.mean() == pytest.approx(1.53, abs=5e-3)
