"""Reading of routers, old outputs of transformers included, and what becomes of what the hooks saw."""

from types import SimpleNamespace

import numpy as np
import pytest

from scenarios.errors import TraceError

torch = pytest.importorskip("torch")

from traces.capture import readings  # noqa: E402
from traces.capture.commands.hf import _stop_ids  # noqa: E402
from traces.capture.hooks import Recorder, Routes, recorded  # noqa: E402
from traces.capture.huggingface import Capture, Generation, Request, capture, check_prompts, trace_of  # noqa: E402
from traces.routing import Provenance  # noqa: E402

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
ORIGIN = Provenance(model="m", source="s", kind="captured")


def choice(ids, weights, n_experts=4):
    return readings.Choice(ids=torch.tensor([ids]), weights=torch.tensor([weights]), n_experts=n_experts)


def test_softmax_blocks_of_transformers_4():
    """exp(3) / (exp(3) + exp(2)) = 0.7311 where weights sum to one, exp(3) / (1 + e + e^2 + e^3) = 0.6439 else."""
    normed = readings.softmax_block(SimpleNamespace(top_k=2), (None, LOGITS))
    plain = readings.softmax_block(SimpleNamespace(top_k=2, norm_topk_prob=False), (None, LOGITS))
    assert normed.ids.tolist() == plain.ids.tolist() == [[1, 3]]
    assert normed.weights[0].tolist() == pytest.approx([0.7311, 0.2689], abs=1e-4)
    assert plain.weights[0].tolist() == pytest.approx([0.6439, 0.2369], abs=1e-4)


def test_granite_gating_of_transformers_4():
    read = readings.granite_gating(SimpleNamespace(top_k=2), ("sorted", "batch", "gates", "sizes", LOGITS))
    assert read.ids.tolist() == [[1, 3]]
    assert read.weights[0].tolist() == pytest.approx([0.7311, 0.2689], abs=1e-4)


def test_routers_of_transformers_4_return_pairs():
    ids, weights = torch.tensor([[2, 0]]), torch.tensor([[0.6, 0.4]])
    deepseek = readings.from_router(SimpleNamespace(weight=torch.zeros(4, 8)), (ids, weights))
    dense = torch.tensor([[0.4, 0.0, 0.6, 0.0]])
    gpt_oss = readings.from_gpt_oss(SimpleNamespace(), (dense, ids))
    for read in (deepseek, gpt_oss):
        assert (read.ids.tolist(), read.n_experts) == ([[2, 0]], 4)
        assert read.weights[0].tolist() == pytest.approx([0.6, 0.4])


def test_experts_stand_in_order_of_weight_and_equals_stay():
    ordered = readings.by_weight(choice([3, 1, 2], [0.2, 0.5, 0.2]))
    assert ordered.ids.tolist() == [[1, 3, 2]]


def test_unknown_and_dense_architectures_name_the_remedy():
    with pytest.raises(TraceError, match=r"'llama' is dense or unknown.*mixtral.*ARCHITECTURES in traces/capture"):
        readings.routers_of(torch.nn.Linear(1, 1), "llama")
    with pytest.raises(TraceError, match="mixtral model holds no MixtralTopKRouter or MixtralSparseMoeBlock"):
        readings.routers_of(torch.nn.Linear(1, 1), "mixtral")


def test_a_router_outside_numbered_layers_has_no_place():
    router = type("Llama4Router", (torch.nn.Module,), {})()
    with pytest.raises(TraceError, match="router 'gate' is in no numbered layer"):
        readings.routers_of(torch.nn.ModuleDict({"gate": router}), "llama4_text")


def test_passes_follow_each_other():
    recorder = Recorder(layers=(1, 4))
    for expert in (0, 3):
        recorder.add(4, choice([expert, 1], [0.3, 0.7]))
        recorder.add(1, choice([expert, 2], [0.6, 0.4]))
        routes = recorder.take(1)
        assert routes.ids.tolist() == [[[expert], [2]], [[1], [expert]]]
        assert routes.weights.dtype == np.float16
    assert recorder.n_experts == 4


@pytest.mark.parametrize(
    ("layers", "n_tokens", "message"),
    [
        ({0: choice([1], [1.0])}, 1, "the router of layer 1 was not called: a fused kernel"),
        ({0: choice([1], [1.0]), 1: choice([1, 2], [0.5, 0.5])}, 1, r"\(1, 1\), \(1, 2\)"),
        ({0: choice([1], [1.0]), 1: choice([1], [1.0], 8)}, 1, r"of \[4, 8\] experts"),
        ({0: choice([1], [1.0]), 1: choice([1], [1.0])}, 5, "for 5 tokens"),
    ],
)
def test_passes_that_are_no_trace_are_refused(layers, n_tokens, message):
    recorder = Recorder(layers=(0, 1))
    for layer, seen in layers.items():
        recorder.add(layer, seen)
    with pytest.raises(TraceError, match=message):
        recorder.take(n_tokens)


def test_hooks_are_gone_when_a_pass_fails():
    module = torch.nn.Linear(2, 2)

    def fail(*_):
        raise TraceError("no")

    with pytest.raises(TraceError, match="no"), recorded({0: (module, fail)}):
        module(torch.zeros(1, 2))
    assert not module._forward_hooks


def test_a_router_called_twice_in_a_pass_is_refused():
    recorder = Recorder(layers=(0,))
    recorder.add(0, choice([1], [1.0]))
    with pytest.raises(TraceError, match="layer 0 routed twice"):
        recorder.add(0, choice([1], [1.0]))


def routes(*experts):
    ids = np.array(experts, np.int16).reshape(1, 1, -1)
    return Routes(ids=ids, weights=np.ones(ids.shape, np.float16))


def captured():
    """Two requests, the second of which ended at once."""
    requests = (
        Request(prompt=(9, 9), generated=(9,), prefill=routes(0, 1), decode=routes(2)),
        Request(prompt=(9,), generated=(), prefill=routes(3), decode=None),
    )
    return Capture(requests=requests, layers=(5,), n_experts=300)


@pytest.mark.parametrize(
    ("phase", "ids", "offsets", "positions", "labels"),
    [
        ("mixed", [0, 1, 2, 3], [0, 3, 4], [0, 1, 2, 0], ("a", "b")),
        ("prefill", [0, 1, 3], [0, 2, 3], [0, 1, 0], ("a", "b")),
        ("decode", [2], [0, 1], [2], ("a",)),
    ],
)
def test_traces_hold_the_tokens_of_their_phase(phase, ids, offsets, positions, labels):
    trace = trace_of(captured(), phase, ORIGIN, ["a", "b"], gate_weights=True)
    assert trace.ids.dtype == np.uint16  # 300 experts
    assert trace.ids.ravel().tolist() == ids
    assert (trace.offsets.tolist(), trace.positions.tolist(), trace.labels) == (offsets, positions, labels)
    assert (trace.moe_layers, trace.phase, trace.weight_ordered) == ((5,), phase, True)
    assert trace.weights is not None and trace.weights.shape == trace.ids.shape


def test_a_trace_without_tokens_is_refused():
    only = Capture(requests=captured().requests[1:], layers=(5,), n_experts=4)
    with pytest.raises(TraceError, match="no request has tokens in decode"):
        trace_of(only, "decode", ORIGIN)
    assert trace_of(only, "prefill", ORIGIN).weights is None


@pytest.mark.parametrize(
    ("prompts", "new_tokens", "message"),
    [
        ([], 0, "there are no prompts"),
        ([[1], []], 0, "prompt 2 has no tokens"),
        ([[1, 50]], 0, "token 50 is outside the vocabulary of 50"),
        ([[1, -3]], 0, "token -3 is outside"),
        ([[1] * 6], 5, "6 tokens and 5 new ones exceed the model's context of 10; .*--max-prompt-tokens 5"),
    ],
)
def test_prompts_that_the_model_cannot_run(prompts, new_tokens, message):
    config = SimpleNamespace(vocab_size=50, max_position_embeddings=10)
    check_prompts(config, [[1]], 9)
    with pytest.raises(TraceError, match=message):
        check_prompts(config, prompts, new_tokens)


def test_generation_needs_sound_numbers():
    with pytest.raises(TraceError, match="-1 new tokens in batches of 0"):
        Generation(new_tokens=-1, batch_size=0)


@pytest.mark.parametrize(("eos", "ids"), [(None, set()), (7, {7}), ([7, 9], {7, 9})])
def test_generation_ends_where_the_model_says(eos, ids):
    assert _stop_ids(SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))) == ids


@pytest.mark.slow
def test_a_stop_token_ends_its_request_and_no_other():
    pytest.importorskip("transformers")
    from tests.huggingface_models import tiny_model

    model, prompts = tiny_model("qwen3_moe"), ([5, 7, 9], [3, 4, 8, 10])
    free = capture(model, prompts, Generation(new_tokens=6, batch_size=2)).requests
    stop = next(token for token in free[0].generated if token not in free[1].generated)
    stopped = capture(model, prompts, Generation(new_tokens=6, batch_size=2, stop_ids=frozenset({stop}))).requests
    length = free[0].generated.index(stop)
    assert stopped[0].generated == free[0].generated[:length]
    assert stopped[1].generated == free[1].generated
    assert np.array_equal(stopped[1].decode.ids, free[1].decode.ids)
    assert length == 0 or stopped[0].decode.ids.shape[2] == length
