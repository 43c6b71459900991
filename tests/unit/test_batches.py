"""Steps of a serving engine: who processes which token when, and which sequences judge a plan."""

import numpy as np
import pytest

from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.errors import ScenarioError, TraceError
from scenarios.workload_specs import WorkloadSpec
from sim.forward import build_step
from sim.program import Work
from sim.setting import Setting, check_trace, make_setting
from tests.small import random_ids, random_trace, tiny_model, trace_of
from traces.batches import Batches, compose_batches
from traces.routing import RoutingTrace
from traces.split import split_sequences

LENGTHS = [5, 9, 1, 7, 12, 6]


def numbered_trace() -> RoutingTrace:
    """Sequences of different lengths whose positions start at 100 times their number."""
    positions = np.concatenate([100 * s + np.arange(n) for s, n in enumerate(LENGTHS)]).astype(np.int32)
    return trace_of(random_ids((1, 2, sum(LENGTHS)), 8), 8, LENGTHS, positions=positions)


def composed(phase: str, shape: tuple[int, int, int], seed: int = 0, **fields: object) -> Batches:
    trace = numbered_trace()
    options = {"sequences": np.arange(trace.n_sequences), "context_tokens": None} | fields
    return compose_batches(trace, phase=phase, shape=shape, rng=np.random.default_rng(seed), **options)


def sequence_of(tokens: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(LENGTHS), tokens, side="right")


def assert_consecutive(tokens: np.ndarray, sequences: set[int]) -> None:
    """One token after the other; the last of a sequence is followed by the first of another one, always the same."""
    firsts, lasts = np.cumsum([0, *LENGTHS[:-1]]), np.cumsum(LENGTHS) - 1
    followers: dict[int, set[int]] = {}
    for token, following in zip(tokens[..., :-1].ravel(), tokens[..., 1:].ravel(), strict=True):
        if token in lasts:
            followers.setdefault(int(token), set()).add(int(following))
        else:
            assert following == token + 1
    assert all(len(after) == 1 and after <= set(firsts.tolist()) for after in followers.values())
    assert set(sequence_of(tokens).ravel().tolist()) <= sequences


def test_a_place_of_a_decode_batch_advances_by_one_token_a_step() -> None:
    batches = composed("decode", (30, 2, 3))
    assert batches.tokens.shape == (30, 2, 3)
    assert batches.n_steps == 30
    assert_consecutive(np.moveaxis(batches.tokens, 0, -1), set(range(6)))
    assert len(set(batches.tokens[0].ravel().tolist())) == 6  # places start apart


def test_prefill_takes_consecutive_tokens_step_after_step() -> None:
    batches = composed("prefill", (4, 2, 7))
    assert_consecutive(np.moveaxis(batches.tokens, 1, 0).reshape(2, 28), set(range(6)))


def test_places_start_evenly_spread_over_the_stream() -> None:
    # one sequence of 24 tokens and 8 places: starts lie 3 tokens apart
    trace = trace_of(random_ids((1, 2, 24), 8), 8)
    batches = compose_batches(
        trace, np.array([0]), phase="decode", shape=(1, 2, 4), context_tokens=None, rng=np.random.default_rng(3)
    )
    assert set(np.diff(np.sort(batches.tokens.ravel())).tolist()) == {3}


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_contexts_are_positions_plus_one_or_as_asked(phase: str) -> None:
    batches = composed(phase, (5, 2, 4))
    np.testing.assert_array_equal(batches.contexts, numbered_trace().positions[batches.tokens] + 1)
    assert (composed(phase, (5, 2, 4), context_tokens=77).contexts == 77).all()


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_batches_repeat_with_the_seed_and_only_with_it(phase: str) -> None:
    first, again, other = (composed(phase, (6, 2, 4), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any()


def test_sequences_come_in_random_order() -> None:
    # one place walks through all 40 tokens; where sequence 0 ends, different ones follow
    walks = [sequence_of(composed("decode", (40, 1, 1), seed).tokens.ravel()) for seed in range(8)]
    followers = {int(np.roll(walk, -1)[np.flatnonzero(walk == 0)[-1]]) for walk in walks}
    assert len(followers - {0}) > 2


def test_passes_tell_how_often_the_tokens_are_used() -> None:
    # 5 steps of 2 devices of 4 tokens = 40 tokens, taken from 40, and from the 12 of sequence 4
    assert composed("decode", (5, 2, 4)).passes == 1.0
    assert composed("decode", (5, 2, 4), sequences=np.array([4])).passes == pytest.approx(40 / 12)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_only_the_given_sequences_are_used(phase: str) -> None:
    batches = composed(phase, (20, 2, 4), sequences=np.array([1, 4]))
    assert set(sequence_of(batches.tokens).ravel().tolist()) == {1, 4}


def test_all_tokens_are_used_equally_in_whole_passes() -> None:
    # 8 places 5 tokens apart, 5 steps: every one of the 40 tokens once
    assert np.bincount(composed("decode", (5, 2, 4)).tokens.ravel()).tolist() == [1] * 40


def test_no_sequence_is_an_error() -> None:
    with pytest.raises(TraceError, match="holds no sequence; raise its share"):
        composed("decode", (1, 1, 1), sequences=np.zeros(0, np.int64))


def setting(trace: RoutingTrace | None = None, seed: int = 0, **fields: object) -> Setting:
    """A setting on four H200 of one node."""
    model = tiny_model()
    workload = {"trace": "none", "tokens_per_device": 4, "steps": 6, "split": {"fit": 0.5, "evaluate": 0.25}}
    return make_setting(
        model=model,
        cluster=ClusterSpec(node="h200-sxm-8", devices_per_node=4),
        parallel=ParallelSpec.model_validate(fields.pop("parallel", {})),
        workload=WorkloadSpec.model_validate(workload | fields),
        trace=random_trace(model, n_sequences=16) if trace is None else trace,
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(4))
def test_plans_are_never_fitted_on_sequences_that_judge_them(seed: int) -> None:
    trace = random_trace(tiny_model(), n_sequences=16)
    made = setting(trace, seed)
    assert (made.fit_sequences, made.judged_sequences) == (8, 4)
    fit, judged = split_sequences(trace, 0.5, 0.25, seed)
    assert not set(fit.tolist()) & set(judged.tolist())
    assert set((made.batches.tokens // 16).ravel().tolist()) <= set(judged.tolist())
    by_sequence = trace.ids.reshape(2, 2, 16, 16)[:, :, fit]
    assert made.fit_loads.tolist() == [np.bincount(rows.ravel(), minlength=8).tolist() for rows in by_sequence]


def test_without_a_fitted_part_plans_are_fitted_on_what_judges_them() -> None:
    made = setting(split={"fit": 0.0, "evaluate": 0.25})
    assert made.fit_sequences == 0
    assert made.fit_loads.sum(axis=1).tolist() == [4 * 16 * 2] * 2


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"attention": {"dp": 8}}, r"parallel.attention: dp x tp = 8 x 1 = 8, but the cluster has 4 devices \(1 x 4\)"),
        ({"experts": {"ep": 4, "tp": 2}}, "parallel.experts: ep x tp = 4 x 2 = 8, but the cluster has 4 devices"),
    ],
)
def test_a_layout_must_fill_the_cluster(parallel: dict, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        setting(parallel=parallel)


def test_the_layout_of_a_scenario_is_used() -> None:
    made = setting(parallel={"attention": {"dp": 2, "tp": 2}, "experts": {"ep": 2, "tp": 2}})
    assert (made.attention_tp, made.layout.tp, made.layout.n_ranks) == (2, 2, 2)
    plain = setting()
    assert (plain.attention_tp, plain.layout.tp, plain.layout.n_ranks) == (1, 1, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_experts": 16}, r"the trace \(tiny\) has 8 experts where tiny has 16; choose the trace's own model"),
        ({"n_layers": 3, "first_moe_layer": 0}, "2 MoE layers where tiny has 3"),
        ({"top_k": 4}, "2 routed experts per token where tiny has 4"),
    ],
)
def test_a_trace_of_another_model_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        check_trace(random_trace(tiny_model()), tiny_model(**fields))


def test_a_trace_of_varying_k_may_be_wider_than_the_model() -> None:
    trace = trace_of(random_ids((2, 4, 20), 8, unused_frac=0.4), 8)
    check_trace(trace, tiny_model(top_k=2))
    with pytest.raises(TraceError, match="4 routed experts per token where tiny has 5"):
        check_trace(trace, tiny_model(top_k=5))


def test_the_step_of_a_model_has_its_works() -> None:
    model = tiny_model(n_layers=3, first_moe_layer=1, dense_intermediate_size=16, shared_intermediate_size=8)
    step = build_step(model, chunks=2, attention_tp=2)
    dense, moe, _ = step.layers
    assert [layer.attention.layer for layer in step.layers] == [0, 1, 2]
    assert dense.mlp is not None
    assert (dense.gate, dense.shared, dense.chunks) == (None, None, ())
    assert moe.mlp is None
    assert moe.gate is not None
    assert moe.shared is not None
    assert [part.experts.chunk for part in moe.chunks] == [0, 1]
    assert all(layer.gather is not None and layer.scatter is not None for layer in step.layers)
    plain = build_step(tiny_model(), chunks=1, attention_tp=1).layers[0]
    assert (plain.gather, plain.scatter, plain.shared, plain.mlp) == (None, None, None, None)
    assert [part.dispatch for part in plain.chunks] == [Work("dispatch", 0, 0)]
