"""The decoders that are run, their routing, and the tokens that they read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scenarios.errors import ScenarioError
from traces.capture.config import MoeConfig
from traces.capture.decoder import Decoder

SHAPES = {
    "moe-32x4": MoeConfig(
        vocab_size=4096,
        n_layers=4,
        hidden_size=512,
        n_heads=8,
        n_kv_heads=4,
        head_dim=64,
        n_experts=32,
        top_k=4,
        expert_intermediate_size=512,
        max_tokens=576,
    ),
    "moe-16x2-shared": MoeConfig(
        vocab_size=4096,
        n_layers=4,
        hidden_size=384,
        n_heads=8,
        n_kv_heads=4,
        head_dim=64,
        n_experts=16,
        top_k=2,
        expert_intermediate_size=640,
        shared_intermediate_size=640,
        gating="sigmoid",
        max_tokens=576,
    ),
}
"""Models of the runs on a CPU; experts of 3 and 2.8 MiB in fp32, so that a model exceeds the last-level cache."""
LARGE_SHAPES = {
    "moe-64x8-large": MoeConfig(
        vocab_size=32000,
        n_layers=8,
        hidden_size=2048,
        n_heads=16,
        n_kv_heads=8,
        head_dim=128,
        n_experts=64,
        top_k=8,
        expert_intermediate_size=1024,
        max_tokens=2048,
    ),
    "moe-16x2-large": MoeConfig(
        vocab_size=32000,
        n_layers=8,
        hidden_size=2048,
        n_heads=16,
        n_kv_heads=4,
        head_dim=128,
        n_experts=16,
        top_k=2,
        expert_intermediate_size=2816,
        shared_intermediate_size=2816,
        gating="sigmoid",
        max_tokens=2048,
    ),
}
"""Models of the runs on a GPU, in bf16: weights of 6.2 and 4.6 GiB."""
ROUTINGS = ("own", "skewed", "replayed")
SKEW = 0.5  # standard deviation of the router's bias, over the mean score
REUSE_FRAC = 0.6  # of replayed routing: chance that a token keeps an expert of the token before it in its request


def shapes_of(device: str) -> dict[str, MoeConfig]:
    """Models that are run on a device, by name."""
    return LARGE_SHAPES if device == "cuda" else SHAPES


def make_model(config: MoeConfig, device: torch.device, seed: int = 0) -> Decoder:
    """A decoder with random weights, float32 on a CPU and bfloat16 on a GPU."""
    torch.manual_seed(seed)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model: Decoder = Decoder(config).to(device, dtype).eval()
    model.turns = model.turns.float()
    return model


def set_routing(model: Decoder, routing: str) -> None:
    """Make the router's choice skewed by a bias of its scores, or leave it to itself ("own", "replayed").

    The bias of an expert is normal, in units of the mean score: some experts are then chosen several times as often.
    """
    if routing not in ROUTINGS:
        raise ScenarioError(f"routing '{routing}' is not known; choose {', '.join(ROUTINGS)}")
    config = model.config
    mean_score = 1 / config.n_experts if config.gating == "softmax" else 0.5
    scale = SKEW * mean_score if config.gating == "softmax" else 0.1 * SKEW
    generator = torch.Generator().manual_seed(7)
    for block in model.layers:
        bias = torch.randn(config.n_experts, generator=generator) * scale
        block.router.bias.copy_(bias if routing == "skewed" else torch.zeros(config.n_experts))


def draw_tokens(config: MoeConfig, n_requests: int, n_tokens: int, seed: int) -> Tensor:
    """Text of random tokens, int64 [request, token]."""
    return torch.randint(config.vocab_size, (n_requests, n_tokens), generator=torch.Generator().manual_seed(seed))


def replayed_ids(config: MoeConfig, n_requests: int, n_tokens: int, seed: int) -> Tensor:
    """A synthetic trace, int64 [layer, request, token, k]: Zipf popularity (exponent 1), reuse from token to token.

    A token keeps each expert of its predecessor with chance REUSE_FRAC, as captured traces of decode do, and draws the
    others anew, without repetition.
    """
    rng = np.random.default_rng(seed)
    popularity = np.log(1.0 / np.arange(1, config.n_experts + 1))
    shape = (config.n_layers, n_requests)
    ranked = np.stack([rng.permutation(config.n_experts) for _ in range(config.n_layers)])
    ids = np.empty((*shape, n_tokens, config.top_k), np.int64)
    for place in np.ndindex(shape):
        keys = np.empty(config.n_experts)
        keys[ranked[place[0]]] = popularity
        for token in range(n_tokens):
            score = keys + rng.gumbel(size=config.n_experts)  # the best k of these are draws without repetition
            if token:
                kept = ids[(*place, token - 1)]
                score[kept[rng.random(config.top_k) < REUSE_FRAC]] = np.inf
            ids[(*place, token)] = np.argsort(-score, kind="stable")[: config.top_k]
    return torch.from_numpy(ids)


def forced(ids: Tensor | None, start: int, n_tokens: int) -> Sequence[Tensor] | None:
    """Experts of the tokens from `start` on, [layer]: int64 [request x token, k], as `Decoder.forward` takes them."""
    if ids is None:
        return None
    return [layer[:, start : start + n_tokens].flatten(0, 1) for layer in ids]
