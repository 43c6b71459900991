"""A real MoE decoder in torch, made so that each part of a block can be called, timed and recorded by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from traces.capture.config import MoeConfig
from traces.capture.experts import Backend, ExpertWeights, Routing, loop, swiglu

INIT_STD = 0.02


@dataclass(slots=True)
class KvCache:
    """Keys and values of running requests: `keys`, `values` [layer][slot, KV head, token, head_dim].

    `lengths` int64 [slot] on the CPU: tokens that each slot holds; `Decoder.forward` moves it on.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor

    @classmethod
    def empty(cls, config: MoeConfig, slots: int, like: Tensor) -> KvCache:
        """Room for `slots` requests of the config's max_tokens, on the device and in the type of `like`."""
        shape = (slots, config.n_kv_heads, config.max_tokens, config.head_dim)
        keys = [like.new_zeros(shape) for _ in range(config.n_layers)]
        return cls(keys, [torch.zeros_like(k) for k in keys], torch.zeros(slots, dtype=torch.int64))


@dataclass(slots=True)
class Recorder:
    """Chosen experts of every forward pass, `ids` [pass][layer]: int64 [token, k] on the CPU, by request."""

    ids: list[list[Tensor]] = field(default_factory=list)

    def start(self) -> None:
        """Begin the next forward pass."""
        self.ids.append([])

    def add(self, routing: Routing) -> None:
        """Note one layer's choice."""
        self.ids[-1].append(routing.ids.to("cpu", torch.int64))


@dataclass(frozen=True, slots=True)
class Span:
    """Which slots of a cache a pass extends, and by how many tokens each: queries [slot, n_tokens]."""

    slots: Tensor
    starts: Tensor
    n_tokens: int

    @property
    def longest(self) -> int:
        """Longest context of the pass, its own tokens included."""
        return int(self.starts.max()) + self.n_tokens

    def positions(self) -> Tensor:
        """int64 [slot, token]"""
        return self.starts.unsqueeze(1) + torch.arange(self.n_tokens)


class RmsNorm(nn.Module):
    """Root-mean-square norm with a learnt scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] over its root mean square, times the scale."""
        return functional.rms_norm(x, (x.shape[-1],), self.scale, 1e-6)


class Attention(nn.Module):
    """Grouped-query attention with rotary embedding and, where a cache is given, cached keys and values."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, heads, bias=False)
        self.out = nn.Linear(config.n_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, turns: Tensor, cached: tuple[Tensor, Tensor] | None, span: Span | None) -> Tensor:
        """x [request, token, hidden]; `turns` [request or 1, 1, token, 2, head_dim / 2]: cosines and sines."""
        result: Tensor = self.out(self.mix(self.qkv(x), turns, cached, span))
        return result

    def mix(self, projected: Tensor, turns: Tensor, cached: tuple[Tensor, Tensor] | None, span: Span | None) -> Tensor:
        """What lies between the projections: [request, token, heads x head_dim] of projected queries, keys, values."""
        n_requests, n_tokens, _ = projected.shape
        config = self.config
        split = [config.n_heads, config.n_kv_heads, config.n_kv_heads]
        heads = projected.view(n_requests, n_tokens, sum(split), config.head_dim).transpose(1, 2)
        query, key, value = heads.split(split, dim=1)
        query, key = rotate(query, turns), rotate(key, turns)
        mask = None
        if cached is not None and span is not None:
            key, value, mask = extend(cached, key, value, span)
        causal = mask is None
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal and n_tokens > 1, enable_gqa=True
        )
        return mixed.transpose(1, 2).reshape(n_requests, n_tokens, -1)


class Router(nn.Module):
    """Scores of the experts and the choice of the best k."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.scores = nn.Linear(config.hidden_size, config.n_experts, bias=False)
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(config.n_experts))

    def probabilities(self, x: Tensor) -> Tensor:
        """Score of every expert, float32 [token, expert]: softmax, or sigmoids."""
        logits = self.scores(x).float()
        return logits.softmax(dim=-1) if self.config.gating == "softmax" else logits.sigmoid()

    def choose(self, probabilities: Tensor) -> Routing:
        """The best k of scores plus bias, best first, with weights that sum to one."""
        ids = (probabilities + self.bias).topk(self.config.top_k, dim=-1).indices
        return self.weigh(probabilities, ids)

    def weigh(self, probabilities: Tensor, ids: Tensor) -> Routing:
        """The given experts [token, k], by their own scores in descending order."""
        weights, order = probabilities.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
        return Routing(ids.gather(-1, order), weights / weights.sum(dim=-1, keepdim=True))


class Block(nn.Module):
    """One transformer block; `attend`, `route` and `mix` are its three parts."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.expert_intermediate_size
        self.attention_norm, self.attention = RmsNorm(hidden), Attention(config)
        self.expert_norm, self.router = RmsNorm(hidden), Router(config)
        self.up = nn.Parameter(torch.empty(config.n_experts, hidden, 2 * width))
        self.down = nn.Parameter(torch.empty(config.n_experts, width, hidden))
        shared = config.shared_intermediate_size
        self.shared_up = nn.Linear(hidden, 2 * shared, bias=False) if shared else None
        self.shared_down = nn.Linear(shared, hidden, bias=False) if shared else None

    @property
    def experts(self) -> ExpertWeights:
        """Weights of the routed experts."""
        return ExpertWeights(self.up, self.down)

    def attend(self, x: Tensor, turns: Tensor, cached: tuple[Tensor, Tensor] | None, span: Span | None) -> Tensor:
        """x [request, token, hidden] plus attention."""
        mixed: Tensor = x + self.attention(self.attention_norm(x), turns, cached, span)
        return mixed

    def route(self, x: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Routing, Tensor]:
        """Normed tokens [token, hidden], their routing (that of `ids` where given), and all scores."""
        normed = self.expert_norm(x).flatten(0, 1)
        scores = self.router.probabilities(normed)
        routing = self.router.choose(scores) if ids is None else self.router.weigh(scores, ids)
        return normed, Routing(routing.ids, routing.weights.to(normed.dtype)), scores

    def share(self, normed: Tensor) -> Tensor | None:
        """Result of the shared experts [token, hidden], or None where there are none."""
        if self.shared_up is None or self.shared_down is None:
            return None
        result: Tensor = self.shared_down(swiglu(self.shared_up(normed)))
        return result

    def mix(self, x: Tensor, normed: Tensor, routing: Routing, backend: Backend) -> Tensor:
        """x plus routed and shared experts."""
        result = backend(normed, routing, self.experts)
        shared = self.share(normed)
        return x + (result if shared is None else result + shared).view_as(x)


class Decoder(nn.Module):
    """The whole model; embeddings serve as the head, too."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RmsNorm(config.hidden_size)
        self.turns: Tensor
        self.register_buffer("turns", rotations(config), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=INIT_STD)

    @property
    def layers(self) -> Sequence[Block]:
        """The blocks, in order."""
        return list(self.blocks)

    def forward(
        self,
        tokens: Tensor,
        cache: KvCache | None = None,
        slots: Tensor | None = None,
        *,
        backend: Backend = loop,
        recorder: Recorder | None = None,
        forced_ids: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states after the last norm [request, token, hidden]; `logits` makes scores of them.

        tokens      int64 [request, token]
        cache       keys and values of the requests so far, in its `slots` int64 [request] (default: the first ones);
                    the tokens are appended. Without a cache, attention is causal over the tokens alone.
        forced_ids  [layer]: int64 [token, k], experts instead of the router's own choice.
        """
        span = None if cache is None else span_of(cache, slots, tokens)
        turns = self.turns_of(tokens, span)
        x = self.embedding(tokens)
        if recorder is not None:
            recorder.start()
        for number, block in enumerate(self.layers):
            cached = None if cache is None else (cache.keys[number], cache.values[number])
            x = block.attend(x, turns, cached, span)
            normed, routing, _ = block.route(x, None if forced_ids is None else forced_ids[number])
            if recorder is not None:
                recorder.add(routing)
            x = block.mix(x, normed, routing, backend)
        if cache is not None and span is not None:
            cache.lengths[span.slots] += span.n_tokens
        result: Tensor = self.norm(x)
        return result

    def turns_of(self, tokens: Tensor, span: Span | None) -> Tensor:
        """Cosines and sines of the tokens' positions [request or 1, 1, token, 2, head_dim / 2]."""
        if span is None:
            return self.turns[: tokens.shape[1]].view(1, 1, tokens.shape[1], 2, -1)
        return self.turns[span.positions().to(self.turns.device)].unsqueeze(1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary [..., vocab]."""
        return functional.linear(hidden, self.embedding.weight)


def span_of(cache: KvCache, slots: Tensor | None, tokens: Tensor) -> Span:
    """Where `tokens` [request, token] go in the cache."""
    chosen = torch.arange(len(tokens)) if slots is None else slots.cpu()
    return Span(chosen, cache.lengths[chosen], tokens.shape[1])


def rotations(config: MoeConfig) -> Tensor:
    """Cosines and sines of every position, float32 [position, 2, head_dim / 2] (RoPE, arXiv 2104.09864)."""
    half = config.head_dim // 2
    speeds = config.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(config.max_tokens, dtype=torch.float32).unsqueeze(1) * speeds
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def rotate(heads: Tensor, turns: Tensor) -> Tensor:
    """Heads [request, head, token, head_dim] turned by the positions of their tokens."""
    cos, sin = turns.to(heads.dtype).unbind(dim=-2)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def extend(
    cached: tuple[Tensor, Tensor], key: Tensor, value: Tensor, span: Span
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values of the whole contexts [request, KV head, longest context, head_dim], and the mask, if needed.

    Every request is padded to the longest context of the pass, as in a padded batch.
    """
    keys, values = cached
    slots, positions = span.slots.to(keys.device), span.positions().to(keys.device)
    keys[slots.unsqueeze(1), :, positions] = key.transpose(1, 2)
    values[slots.unsqueeze(1), :, positions] = value.transpose(1, 2)
    longest = span.longest
    mask = None
    if span.n_tokens > 1 or bool((span.starts != span.starts[0]).any()):
        mask = (torch.arange(longest, device=keys.device) <= positions.unsqueeze(-1)).unsqueeze(1)
    everyone = len(span.slots) == len(keys) and bool((span.slots == torch.arange(len(keys))).all())
    if everyone:
        return keys[:, :, :longest], values[:, :, :longest], mask
    return keys[slots, :, :longest], values[slots, :, :longest], mask
