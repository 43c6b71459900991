"""What must hold of trace statistics whatever the trace."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import stats
from traces.routing import Provenance, RoutingTrace


def make_trace(ids: np.ndarray, lengths: list[int], n_experts: int) -> RoutingTrace:
    return RoutingTrace(
        ids=ids,
        n_experts=n_experts,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        positions=np.zeros(ids.shape[2], np.int32),
        moe_layers=tuple(range(len(ids))),
        phase="mixed",
        provenance=Provenance(model="toy", source="test", kind="synthetic"),
    )


def uniform_ids(n_layers: int, k: int, n_tokens: int, n_experts: int, rng: np.random.Generator) -> np.ndarray:
    """k distinct experts per token, all sets equally likely: uint8[layer, k, token]."""
    order = rng.random((n_layers, n_experts, n_tokens)).argsort(axis=1)
    return order[:, :k].astype(np.uint8)


@st.composite
def traces(draw: st.DrawFn) -> RoutingTrace:
    n_experts = draw(st.integers(2, 12))
    k = draw(st.integers(1, min(4, n_experts)))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5).filter(lambda drawn: max(drawn) > 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return make_trace(uniform_ids(draw(st.integers(2, 3)), k, sum(lengths), n_experts, rng), lengths, n_experts)


@settings(max_examples=40)
@given(traces())
def test_selections_are_conserved(trace: RoutingTrace) -> None:
    loads, k = stats.expert_loads(trace), trace.top_k
    assert (loads.sum(axis=1) == trace.n_tokens * k).all()
    for layer in range(trace.n_layers - 1):
        transitions = stats.transition_counts(trace, layer)
        assert (transitions.sum(axis=1) == k * loads[layer]).all()
        assert (transitions.sum(axis=0) == k * loads[layer + 1]).all()
    together = stats.coactivation(trace, 0)
    assert (together == together.T).all()
    assert (np.diag(together) == loads[0]).all()


@settings(max_examples=40)
@given(traces())
def test_bounds(trace: RoutingTrace) -> None:
    summary = stats.summarise(trace)
    assert (summary.load_imbalance >= 1).all()
    assert (summary.load_imbalance <= trace.n_experts / trace.top_k + 1e-12).all()
    assert (summary.popularity_reuse >= summary.uniform_reuse - 1e-12).all()
    assert ((summary.affinity_frac >= 0) & (summary.affinity_frac <= 1 + 1e-12)).all()
    for reuse in (summary.adjacent_reuse, summary.sequence_reuse):
        assert reuse is not None
        assert ((reuse >= 0) & (reuse <= 1)).all()
    distinct = stats.distinct_experts(trace, 2)
    assert ((distinct >= trace.top_k) & (distinct <= min(trace.n_experts, 2 * trace.top_k))).all()


@settings(max_examples=40)
@given(traces(), st.integers(0, 2**32 - 1))
def test_renaming_experts_and_places_changes_nothing(trace: RoutingTrace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = rng.permutation(trace.n_experts).astype(np.uint8)
    lengths = np.diff(trace.offsets).tolist()
    renamed = make_trace(rng.permuted(names[trace.ids], axis=1), lengths, trace.n_experts)
    before, after = stats.summarise(trace), stats.summarise(renamed)
    for name in ("load_imbalance", "load_cv", "load_entropy_bits", "adjacent_reuse", "sequence_reuse", "affinity_bits"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-12)


@settings(max_examples=40)
@given(traces())
def test_reuse_agrees_with_sets(trace: RoutingTrace) -> None:
    """Mean of |S_t n S_t+1| / k inside sequences, spelled out with Python sets."""
    sets = [[set(trace.ids[layer, :, t].tolist()) for t in range(trace.n_tokens)] for layer in range(trace.n_layers)]
    ends = set(trace.offsets.tolist())
    adjacent = [t for t in range(trace.n_tokens - 1) if t + 1 not in ends]
    mean = [np.mean([len(row[t] & row[t + 1]) / trace.top_k for t in adjacent]) for row in sets]
    assert stats.adjacent_reuse(trace) == pytest.approx(np.array(mean))


def test_uniform_routing_touches_the_expected_number_of_experts() -> None:
    """E (1 - (1 - k/E)^B) for independent tokens; 4 standard errors of 500 batches with a deviation below 2."""
    trace = make_trace(uniform_ids(1, 4, 4000, 32, np.random.default_rng(5)), [4000], 32)
    expected = 32 * (1 - (1 - 4 / 32) ** 8)
    assert stats.distinct_experts(trace, 8).mean() == pytest.approx(expected, abs=4 * 2 / 500**0.5)
