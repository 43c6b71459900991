"""Captured routing of every architecture against its published rule, written out here over the router's inputs."""

import re

import numpy as np
import pytest

from tests.huggingface_models import CONFIGS, MOE_LAYERS, tiny_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from traces.capture.hooks import joined  # noqa: E402
from traces.capture.huggingface import Generation, capture  # noqa: E402
from traces.capture.readings import ARCHITECTURES  # noqa: E402

pytestmark = pytest.mark.slow
PROMPTS = ([5, 7, 9, 11, 13], [3, 4, 8], [20, 21, 22, 23, 24, 25, 26, 27, 28])
NEW_TOKENS = 5


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def sigmoid(scores):
    return 1 / (1 + np.exp(-scores))


def best(scores, k):
    return np.argsort(-scores, kind="stable")[:k]


def softmax_then_best(logits, k, config, _bias):
    """Mixtral (arXiv 2401.04088), OLMoE, Qwen; the weights sum to one where `norm_topk_prob` says so."""
    scores = softmax(logits)
    chosen = best(scores, k)
    normed = getattr(config, "norm_topk_prob", config.model_type != "jamba")
    return chosen, scores[chosen] / (scores[chosen].sum() if normed else 1)


def best_then_softmax(logits, k, _config, _bias):
    """gpt-oss and Granite: softmax over the chosen logits alone."""
    chosen = best(logits, k)
    return chosen, softmax(logits[chosen])


def best_groups(scores, config, score_of_group):
    """Scores with all groups but the best made unattractive."""
    groups = scores.reshape(config.n_group, -1)
    kept = best(np.array([score_of_group(group) for group in groups]), config.topk_group)
    return np.where(np.isin(np.arange(config.n_group), kept)[:, None], groups, -np.inf).ravel()


def deepseek_v2(logits, k, config, _bias):
    """Device-limited routing by the best expert of each group (arXiv 2405.04434, section 2.2.2)."""
    scores = softmax(logits)
    chosen = best(best_groups(scores, config, np.max), k)
    return chosen, scores[chosen] * config.routed_scaling_factor


def deepseek_v3(logits, k, config, bias):
    """Sigmoids plus bias choose, by the best two of each group; sigmoids weigh (arXiv 2412.19437, section 2.1.2)."""
    scores = sigmoid(logits)
    chosen = best(best_groups(scores + bias, config, lambda group: np.sort(group)[-2:].sum()), k)
    normed = scores[chosen].sum() if config.norm_topk_prob else 1
    return chosen, scores[chosen] / normed * config.routed_scaling_factor


def sigmoid_with_bias(logits, k, _config, bias):
    """MiniMax-M2 and LFM2: as DeepSeek-V3, without groups."""
    scores = sigmoid(logits)
    chosen = best(scores + bias, k)
    return chosen, scores[chosen] / scores[chosen].sum()


def ernie(logits, k, _config, bias):
    """Ernie 4.5: softmax plus bias chooses, the softmax weighs."""
    scores = softmax(logits)
    chosen = best(scores + bias, k)
    return chosen, scores[chosen] / scores[chosen].sum()


def sparsemixer(logits, k, config, _bias):
    """SparseMixer-v2 without jitter (arXiv 2409.12136): each of two picks weighs by softmax over scores near it."""
    chosen, weights, left = [], [], logits.copy()
    for _ in range(k):
        top = int(np.argmax(left))
        far = (left[top] - logits) / np.maximum(np.abs(logits), left[top]) > 2 * config.router_jitter_noise
        weights.append(softmax(np.where(far, -np.inf, left))[top])
        chosen.append(top)
        left[top] = -np.inf
    return np.array(chosen), np.array(weights)


def llama4(logits, k, _config, _bias):
    """Llama 4: the best logits, each weighed by its own sigmoid."""
    chosen = best(logits, k)
    return chosen, sigmoid(logits[chosen])


RULES = {
    **dict.fromkeys(CONFIGS, softmax_then_best),
    **dict.fromkeys(("deepseek_v3", "glm4_moe", "dots1"), deepseek_v3),
    **dict.fromkeys(("gpt_oss", "granitemoe", "granitemoeshared"), best_then_softmax),
    **dict.fromkeys(("minimax_m2", "lfm2_moe"), sigmoid_with_bias),
    "deepseek_v2": deepseek_v2,
    "ernie4_5_moe": ernie,
    "phimoe": sparsemixer,
    "llama4_text": llama4,
}


def routers(model):
    """Router modules by layer number, found by their place."""
    found = {
        int(re.search(r"layers\.(\d+)\.", name)[1]): module
        for name, module in model.named_modules()
        if name.endswith((".gate", ".router")) and hasattr(module, "forward")
    }
    return dict(sorted(found.items()))


def watched_inputs(model):
    """Hidden states float64 [token, hidden] that reach each router from now on, by layer."""
    seen = {layer: [] for layer in routers(model)}
    for layer, router in routers(model).items():
        router.register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen[layer].append(inputs[0].detach().double().flatten(0, -2))
        )
    return seen


def parameter(module, *names):
    """First parameter or buffer of `module` or below it with one of these names, as float64, or None."""
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    found = [tensor for name, tensor in tensors.items() if name.split(".")[-1] in names]
    return found[0].detach().double().flatten().numpy() if found else None


def scores_of(model, layer, hidden):
    """Logits float64 [token, expert] of a router's inputs, and its bias of choice [expert]."""
    router = routers(model)[layer]
    weight = getattr(router, "weight", None)
    weight = next(router.parameters()) if weight is None else weight
    logits = hidden.numpy() @ weight.detach().double().numpy().T
    if getattr(router, "bias", None) is not None:
        logits = logits + router.bias.detach().double().numpy()
    block = next(module for module in model.modules() if router in list(module.children()))
    bias = parameter(block, "e_score_correction_bias", "expert_bias")
    return logits, np.zeros(logits.shape[1]) if bias is None else bias


@pytest.mark.parametrize("model_type", CONFIGS)
def test_captured_choice_is_the_published_rule(model_type):
    model = tiny_model(model_type)
    inputs = watched_inputs(model)
    captured = capture(model, PROMPTS, Generation(new_tokens=NEW_TOKENS))
    config = model.config
    top_k = captured.requests[0].prefill.ids.shape[1]
    routes = joined([part for request in captured.requests for part in (request.prefill, request.decode)])
    assert captured.layers == MOE_LAYERS.get(model_type, (0, 1, 2))
    assert routes.ids.shape[2] == sum(map(len, PROMPTS)) + NEW_TOKENS * len(PROMPTS)
    for row, layer in enumerate(captured.layers):
        logits, bias = scores_of(model, layer, torch.cat(inputs[layer]))
        assert captured.n_experts == logits.shape[1]
        for token, token_logits in enumerate(logits):
            chosen, weights = RULES[model_type](token_logits, top_k, config, bias)
            order = np.argsort(-weights, kind="stable")
            assert routes.ids[row, :, token].tolist() == chosen[order].tolist(), (layer, token)
            np.testing.assert_allclose(routes.weights[row, :, token], weights[order], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_experts_and_k_are_those_of_the_config(model_type):
    model = tiny_model(model_type)
    captured = capture(model, PROMPTS[:1], Generation())
    keys = CONFIGS[model_type]
    experts = next(
        keys[k] for k in ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts") if k in keys
    )
    top_k = next(keys[k] for k in ("num_experts_per_tok", "moe_k", "moe_topk") if k in keys)
    assert captured.n_experts == experts
    assert captured.requests[0].prefill.ids.shape == (len(captured.layers), top_k, len(PROMPTS[0]))
    assert captured.requests[0].prefill.ids.max() < experts


@pytest.mark.parametrize("model_type", CONFIGS)
def test_decode_with_a_cache_routes_as_full_recomputation(model_type):
    model = tiny_model(model_type)
    cached = capture(model, PROMPTS, Generation(new_tokens=NEW_TOKENS))
    whole = capture(model, [request.prompt + request.generated for request in cached.requests], Generation())
    for grown, full in zip(cached.requests, whole.requests, strict=True):
        assert np.array_equal(joined([grown.prefill, grown.decode]).ids, full.prefill.ids)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_padded_batches_route_as_single_prompts(model_type):
    model = tiny_model(model_type)
    single = capture(model, PROMPTS, Generation(new_tokens=NEW_TOKENS))
    padded = capture(model, PROMPTS, Generation(new_tokens=NEW_TOKENS, batch_size=3))
    for alone, together in zip(single.requests, padded.requests, strict=True):
        assert alone.generated == together.generated
        assert np.array_equal(alone.prefill.ids, together.prefill.ids)
        assert np.array_equal(alone.decode.ids, together.decode.ids)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_hooks_change_no_bit_and_are_gone_afterwards(model_type):
    model = tiny_model(model_type)
    tokens = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        before = model(tokens).logits
        captured = capture(model, [PROMPTS[2]], Generation(new_tokens=3))
        after = model(tokens).logits
        plain = model.generate(tokens, max_new_tokens=3, do_sample=False)
    assert torch.equal(before, after)
    assert tuple(plain[0, tokens.shape[1] :].tolist()) == captured.requests[0].generated
    assert not any(module._forward_hooks for module in model.modules())


def test_every_architecture_of_the_table_is_tried_here():
    assert set(CONFIGS) == set(ARCHITECTURES)
