"""Synthetic traces: each knob against the statistic it must give, edge cases, and twins of real traces."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from scenarios.catalog import find_model
from scenarios.errors import TraceError
from scenarios.workload_specs import SynthesisSpec
from tests.unit.test_stats import flame, gpt_oss
from traces import stats, synth
from traces.knobs import Knobs, even_lengths, knobs_from_spec, rescale, standard_scores
from traces.routing import RoutingTrace


def plain(**changes: object) -> Knobs:
    """Two layers, top-1 of 4, one sequence a token pair, uniform and independent unless changed."""
    base = Knobs(
        moe_layers=(0, 1),
        n_experts=4,
        top_k=1,
        sequence_lengths=even_lengths(20000, 200),
        skew=0.0,
        sequence_skew=0.0,
        reuse=0.0,
        affinity=0.0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def make(knobs: Knobs, seed: int = 0) -> RoutingTrace:
    return synth.synthesise(knobs, np.random.default_rng(seed))


def test_same_seed_same_trace_and_provenance_says_so() -> None:
    knobs = plain(skew=0.4, reuse=0.3, affinity=0.2, sequence_lengths=(50, 7), model="toy")
    first, again, other = make(knobs, 3), make(knobs, 3), make(knobs, 4)
    assert (first.ids == again.ids).all()
    assert (first.ids != other.ids).any()
    assert first.provenance.kind == "synthetic"
    assert first.provenance.model == "toy"
    assert "skew 0.4, sequence_skew 0, reuse 0.3, affinity 0.2 (means over layers), seed 3" in first.provenance.source
    assert first.positions.tolist() == [*range(50), *range(7)]


@pytest.mark.parametrize(("n_experts", "top_k", "dtype"), [(16, 4, np.uint8), (256, 8, np.uint8), (512, 10, np.uint16)])
def test_ids_are_distinct_and_in_range(n_experts: int, top_k: int, dtype: type) -> None:
    knobs = plain(n_experts=n_experts, top_k=top_k, reuse=0.5, affinity=0.5, skew=2.0, sequence_lengths=(1, 30, 9))
    ids = make(knobs).ids
    assert ids.dtype == dtype
    assert ids.shape == (2, top_k, 40)
    assert ids.max() < n_experts
    assert (np.diff(np.sort(ids.astype(int), axis=1), axis=1) > 0).all()


@pytest.mark.parametrize(("n_experts", "top_k"), [(1, 1), (3, 3), (5, 3), (8, 4), (13, 5)])
def test_awkward_sizes(n_experts: int, top_k: int) -> None:
    knobs = plain(n_experts=n_experts, top_k=top_k, reuse=0.9, affinity=1.0, skew=5.0, sequence_skew=5.0)
    ids = np.sort(make(replace(knobs, sequence_lengths=(40, 1))).ids, axis=1)
    assert ids.max() < n_experts
    assert (np.diff(ids.astype(int), axis=1) > 0).all()


@pytest.mark.parametrize("reuse", [0.0, 0.3, 0.9])
def test_reuse_is_the_excess_over_chance(reuse: float) -> None:
    """Top-1, uniform: R = r + (1 - r) / E; 19,900 pairs, so 4 standard errors are below .015."""
    measured = stats.adjacent_reuse(make(plain(reuse=(reuse, 0.0))))
    assert measured == pytest.approx([reuse + (1 - reuse) / 4, 0.25], abs=0.015)


def test_full_reuse_holds_inside_sequences_only() -> None:
    trace = make(plain(n_experts=64, top_k=2, reuse=1.0, sequence_lengths=(30, 20)))
    assert stats.adjacent_reuse(trace) == pytest.approx([1.0, 1.0])
    assert (trace.ids[:, :, 0] != trace.ids[:, :, 30]).any()


def test_skew_is_the_deviation_of_log_popularity() -> None:
    """Top-1: loads are the popularities; the rarest of 16 gets about 1 % of 200,000 tokens."""
    knobs = plain(n_experts=16, skew=(0.0, 0.8), sequence_lengths=even_lengths(200000, 200))
    logs = np.log(stats.expert_loads(make(knobs)))
    assert logs.std(axis=1) == pytest.approx([0.0, 0.8], abs=0.01)
    assert np.sort(logs[1] - logs[1].mean()) == pytest.approx(0.8 * standard_scores(16), abs=0.1)


def test_draws_are_without_replacement() -> None:
    """Top-2 of 3: P(e chosen) = p_e + sum_{f != e} p_f p_e / (1 - p_f) with p = softmax of the scores."""
    knobs = plain(n_experts=3, top_k=2, skew=1.0, reuse=0.0, affinity=0.0)
    p = np.exp(standard_scores(3))
    p /= p.sum()
    chosen = [p[e] + sum(p[f] * p[e] / (1 - p[f]) for f in range(3) if f != e) for e in range(3)]
    for loads in stats.expert_loads(make(knobs)):
        assert np.sort(loads) / 20000 == pytest.approx(chosen, abs=4 * 0.5 / 20000**0.5)


def test_keeping_does_not_distort_popularity() -> None:
    """Top-1 keeps the stationary distribution: same shares with and without reuse, in the same structure."""
    loads = [stats.expert_loads(make(plain(skew=0.7, reuse=reuse)))[1] / 20000 for reuse in (0.0, 0.5)]
    assert loads[0] == pytest.approx(loads[1], abs=0.02)


def test_affinity_in_bits() -> None:
    """Top-1 of 4: two themes of two experts. Both layers are in the same half with (1 + a^2) / 2: 1 - H of that."""
    for affinity, bits in ((0.0, 0.0), (0.5, 0.0456), (0.8, 1 - 0.6801), (1.0, 1.0)):
        assert stats.affinity_bits(make(plain(affinity=affinity))) == pytest.approx([bits], abs=0.01)


def test_sequence_skew_raises_overlap_inside_sequences_only() -> None:
    knobs = plain(n_experts=16, top_k=2, sequence_lengths=even_lengths(20000, 50))
    flat, own = (make(replace(knobs, sequence_skew=skew)) for skew in (0.0, 1.0))
    assert stats.sequence_reuse(flat) == pytest.approx([2 / 16] * 2, abs=0.005)
    assert (stats.sequence_reuse(own) > 0.2).all()
    assert (stats.load_cv(stats.expert_loads(own)) < 0.15).all()


def test_varying_k_follows_its_shares() -> None:
    shares = (0.5, 0.2, 0.3)
    trace = make(plain(n_experts=8, top_k=3, k_shares=shares))
    assert (trace.variable_k, trace.padding_id) == (True, 255)
    used = (trace.ids != 255).sum(axis=1)
    assert np.bincount(used.ravel(), minlength=4)[1:] / used.size == pytest.approx(shares, abs=0.01)
    assert (trace.ids[:, 0] != 255).all()
    assert synth.fit_report(trace, rounds=1).knobs.k_shares == pytest.approx(shares, abs=0.01)


def test_chunks_cover_whole_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "CHUNK_TOKENS", 10)
    lengths = (4, 6, 25, 3, 3)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    assert list(synth._chunks(offsets)) == [(0, 2), (2, 3), (3, 5)]
    trace = make(plain(reuse=1.0, n_experts=4, sequence_lengths=lengths))
    assert stats.adjacent_reuse(trace) == pytest.approx([1.0, 1.0])
    assert trace.offsets.tolist() == offsets.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reuse": 1.1}, "reuse"),
        ({"skew": (0.1, 0.2, 0.3)}, "3 values for 2 MoE layers"),
        ({"sequence_skew": 6.0}, r"0\.\.5"),
        ({"affinity": float("nan")}, "affinity"),
        ({"top_k": 5}, "top-5 of 4"),
        ({"sequence_lengths": (3, 0)}, "at least one token"),
        ({"k_shares": (0.5,)}, "add up to 0.5"),
        ({"k_shares": (0.5, 0.5)}, "must be 1 shares"),
    ],
)
def test_knobs_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        plain(**changes)


def test_even_lengths() -> None:
    assert even_lengths(10, 4) == (4, 4, 2)
    assert even_lengths(8, 4) == (4, 4)
    assert even_lengths(3, 4) == (3,)


def test_rescale_interpolates_over_depth_and_keeps_shape() -> None:
    knobs = plain(skew=(0.2, 0.6), reuse=0.3, log_shape=(-2.0, 0.0, 1.0))
    big = rescale(knobs, n_experts=256, top_k=8, n_layers=5)
    assert big.skew == pytest.approx((0.2, 0.3, 0.4, 0.5, 0.6))
    assert (big.reuse, big.n_experts, big.top_k, big.moe_layers) == (0.3, 256, 8, (0, 1, 2, 3, 4))
    scores = standard_scores(256, big.log_shape)
    assert (scores.mean(), scores.std()) == pytest.approx((0.0, 1.0))
    assert abs(scores[0]) > scores[-1]  # the long tail stays on the left
    with pytest.raises(TraceError, match="cannot be rescaled to top-2"):
        rescale(plain(top_k=1, k_shares=(1.0,)), n_experts=4, top_k=2, n_layers=2)


def test_rescaled_reuse_keeps_its_excess_over_chance() -> None:
    small = plain(n_experts=8, reuse=0.4)
    for n_experts in (8, 64):
        measured = stats.adjacent_reuse(make(rescale(small, n_experts, 1, 2)))
        assert (measured - 1 / n_experts) / (1 - 1 / n_experts) == pytest.approx([0.4, 0.4], abs=0.02)


def test_knobs_from_a_scenario() -> None:
    model = find_model("deepseek-v2-lite", Path())
    spec = SynthesisSpec(tokens=700, sequence_tokens=300, skew=0.1, sequence_skew=0.2, reuse=0.3, affinity=0.4)
    knobs = knobs_from_spec(spec, model, None)
    assert (knobs.n_experts, knobs.top_k, knobs.moe_layers) == (64, 6, tuple(range(1, 27)))
    assert knobs.sequence_lengths == (300, 300, 100)
    assert (knobs.skew, knobs.sequence_skew, knobs.reuse, knobs.affinity) == (0.1, 0.2, 0.3, 0.4)
    fitted = knobs_from_spec(replace_fit(spec), model, plain(skew=(0.5, 0.7)))
    assert fitted.moe_layers == knobs.moe_layers
    assert fitted.sequence_lengths == knobs.sequence_lengths
    assert fitted.per_layer("skew")[[0, -1]] == pytest.approx([0.5, 0.7])
    with pytest.raises(TraceError, match=r"fit names real\.npz"):
        knobs_from_spec(replace_fit(spec), model, None)


def replace_fit(spec: SynthesisSpec) -> SynthesisSpec:
    return spec.model_copy(update={"fit": "real.npz"})


def test_fit_refuses_traces_without_pairs() -> None:
    with pytest.raises(TraceError, match="every sequence"):
        synth.fit_knobs(make(plain(sequence_lengths=(1, 1, 1))))
    with pytest.raises(TraceError, match="at least one round"):
        synth.fit_report(make(plain(sequence_lengths=(5, 5))), rounds=0)


@pytest.mark.slow
def test_fit_recovers_known_knobs() -> None:
    known = plain(
        moe_layers=tuple(range(6)),
        n_experts=32,
        top_k=4,
        sequence_lengths=even_lengths(16384, 128),
        skew=0.6,
        sequence_skew=0.5,
        reuse=0.25,
        affinity=0.5,
    )
    report = synth.fit_report(make(known, seed=11))
    for name, tolerance in (("skew", 0.05), ("sequence_skew", 0.05), ("reuse", 0.01), ("affinity", 0.03)):
        assert report.knobs.per_layer(name).mean() == pytest.approx(getattr(known, name), abs=tolerance), name
    again = synth.fit_report(make(known, seed=11))
    assert again.knobs == report.knobs


@pytest.mark.slow
@pytest.mark.parametrize("real", [flame, gpt_oss])
def test_twins_of_a_real_trace(real: Callable[[], RoutingTrace], capsys: pytest.CaptureFixture[str]) -> None:
    """Three twins with other seeds than the fit's: how far their means over layers are off, relative to the trace."""
    report = synth.fit_report(real())
    off = {entry.name: np.empty(3) for entry in fields(report.target)}
    for twin, seed in enumerate((7, 8, 9)):
        reached = synth.matched_stats(make(report.knobs, seed))
        for name, values in off.items():
            values[twin] = getattr(reached, name).mean() / getattr(report.target, name).mean() - 1
    with capsys.disabled():
        print(f"\n{real.__name__}: " + ", ".join(f"{name} {np.round(100 * v, 1)} %" for name, v in off.items()))
    mean = {name: abs(values.mean()) for name, values in off.items()}
    assert mean["load_imbalance"] < 0.10
    assert mean["load_cv"] < 0.15
    assert mean["sequence_reuse"] < 0.10
    assert mean["adjacent_reuse"] * report.target.adjacent_reuse.mean() < 0.03
    assert mean["affinity_bits"] < 0.15
