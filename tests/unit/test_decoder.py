import pytest

torch = pytest.importorskip("torch")

from traces.capture.config import MoeConfig  # noqa: E402
from traces.capture.decoder import Decoder, KvCache, Recorder  # noqa: E402
from traces.capture.experts import BACKENDS  # noqa: E402

SMALL = {
    "vocab_size": 64,
    "n_layers": 2,
    "hidden_size": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "n_experts": 8,
    "top_k": 2,
    "expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "max_tokens": 32,
}


def small(gating="softmax", **sizes):
    return MoeConfig(**(SMALL | sizes), gating=gating)


def decoder(config):
    torch.manual_seed(0)
    return Decoder(config).eval()


def prompts(n_requests=3, n_tokens=16):
    return torch.randint(0, 64, (n_requests, n_tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_back_ends_equal_the_sum_over_experts_written_out(gating, backend):
    config = small(gating)
    block = decoder(config).layers[0]
    with torch.inference_mode():
        normed, routing, _ = block.route(torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(2)))
        found = BACKENDS[backend](normed, routing, block.experts)
        for token in range(7):
            expected = torch.zeros(32)
            for number, weight in zip(routing.ids[token].tolist(), routing.weights[token].tolist(), strict=True):
                gate, up = (normed[token] @ block.up[number]).chunk(2)
                expected += weight * ((gate * torch.sigmoid(gate) * up) @ block.down[number])
            torch.testing.assert_close(found[token], expected, atol=1e-6, rtol=1e-4)


def test_cached_decode_of_ragged_requests_equals_whole_prompts():
    model, tokens = decoder(small()), prompts()
    with torch.inference_mode():
        whole = model(tokens)
        cache = KvCache.empty(model.config, 3, whole)
        for request, length in enumerate((5, 9, 13)):
            model(tokens[request : request + 1, :length], cache, torch.tensor([request]))
        last = torch.stack([tokens[request, length] for request, length in enumerate((5, 9, 13))])
        one = model(last.unsqueeze(1), cache)
    for request, length in enumerate((5, 9, 13)):
        torch.testing.assert_close(one[request, 0], whole[request, length], atol=1e-5, rtol=1e-4)
    assert cache.lengths.tolist() == [6, 10, 14]


def test_recorder_holds_each_pass_and_forced_experts_are_used():
    model, recorder = decoder(small()), Recorder()
    with torch.inference_mode():
        model(prompts(), recorder=recorder)
        forced = [ids.flip(0) for ids in recorder.ids[0]]
        model(prompts(), recorder=recorder, forced_ids=forced)
    assert [len(layers) for layers in recorder.ids] == [2, 2]
    assert recorder.ids[0][0].shape == (48, 2)
    for wanted, used in zip(forced, recorder.ids[1], strict=True):
        assert torch.equal(wanted.sort(-1).values, used.sort(-1).values)


def test_sigmoid_bias_moves_the_choice_but_not_the_weights():
    block = decoder(small("sigmoid")).layers[0]
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2]])
    block.router.bias[7] = 1.0
    routing = block.router.choose(scores)
    assert routing.ids.tolist() == [[0, 7]]
    torch.testing.assert_close(routing.weights, torch.tensor([[0.9, 0.2]]) / 1.1)


def test_sizes_that_contradict_each_other_are_refused():
    from scenarios.errors import ScenarioError

    for wrong in ({"top_k": 9}, {"n_kv_heads": 3}, {"head_dim": 7}):
        with pytest.raises(ScenarioError):
            small(**wrong)
