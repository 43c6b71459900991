"""Attention of one layer, between the projections: rotary embedding, cache write, scores and sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from traces.capture.clock import Work
from traces.capture.config import MoeConfig
from traces.capture.decoder import Attention, Span, rotations
from traces.capture.kernels.bench import DTYPES, LONG_NAMES, Bench, Case, timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Heads of a layer."""

    n_heads: int
    n_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: `requests` with `past` tokens each in the cache, and `new` ones; ragged: pasts differ by one."""

    requests: int
    past: int
    new: int
    ragged: bool = False


def cases(bench: Bench, heads: Sequence[Heads], calls: Sequence[Call], dtype: str) -> Iterator[Case]:
    """All calls with all heads."""
    for shape in heads:
        for call in calls:
            yield _case(bench, shape, call, dtype)


def _case(bench: Bench, heads: Heads, call: Call, dtype: str) -> Case:
    shape = {
        "batch_size": call.requests, "isl": call.new, "step": call.past, "num_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads, "head_dim": heads.head_dim, "kv_cache_dtype": LONG_NAMES[dtype],
        "ragged": int(call.ragged), "kernel_source": "torch_sdpa",
    }  # fmt: skip
    return Case(shape=shape, measure=lambda: timed(bench.time(worker_of(bench, heads, call, dtype))))


def worker_of(bench: Bench, heads: Heads, call: Call, dtype: str) -> Work:
    """The call as work whose turns go through the caches of several layers."""
    config = _config(heads, call)
    layer = Attention(config).to(bench.device, DTYPES[dtype])
    shape = (call.requests, heads.n_kv_heads, config.max_tokens, heads.head_dim)
    size = 2 * call.requests * heads.n_kv_heads * (call.past + call.new) * heads.head_dim * DTYPES[dtype].itemsize
    cached = [
        (bench.randn(*shape, dtype=dtype), bench.randn(*shape, dtype=dtype)) for _ in range(bench.copies_of(size))
    ]
    width = (heads.n_heads + 2 * heads.n_kv_heads) * heads.head_dim
    projected = bench.randn(call.requests, call.new, width, dtype=dtype)
    span = _span(call)
    turns = rotations(config).to(bench.device)[span.positions().to(bench.device)].unsqueeze(1)
    return lambda turn: layer.mix(projected, turns, cached[turn % len(cached)], span)


def _config(heads: Heads, call: Call) -> MoeConfig:
    """A decoder that has these heads, and room for the call in its cache."""
    return MoeConfig(
        vocab_size=1,
        n_layers=1,
        hidden_size=heads.n_heads * heads.head_dim,
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        n_experts=1,
        top_k=1,
        expert_intermediate_size=1,
        max_tokens=call.past + call.new + 1,
    )


def _span(call: Call) -> Span:
    slots = torch.arange(call.requests)
    uneven = slots % 2 if call.ragged else torch.zeros_like(slots)
    return Span(slots, call.past - uneven, call.new)
