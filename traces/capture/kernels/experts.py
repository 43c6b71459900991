"""Routed experts of one layer by the decoder's back ends, for given tokens of every expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from traces.capture.experts import BACKENDS, ExpertWeights, Routing
from traces.capture.kernels.bench import LONG_NAMES, Bench, Case, Row, timed

Counts = NDArray[np.int64]
KINDS = ("balanced", "uniform", "skewed")
SKEW = 1.0  # exponent of Zipf's law, by which the "skewed" counts fall with the rank of the expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Sizes of a layer of experts."""

    hidden: int
    intermediate: int
    n_experts: int
    top_k: int

    @property
    def expert_values(self) -> int:
        """Weights of one expert, its gate included."""
        return 3 * self.hidden * self.intermediate


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Copies of a layer's weights, which turns walk through, and the shape and data type that they have."""

    layer: Layer
    dtype: str
    copies: tuple[ExpertWeights, ...]


def cases(
    bench: Bench, layers: Sequence[Layer], tokens: Sequence[int], backends: Sequence[str], dtype: str
) -> Iterator[Case]:
    """All layers and tokens with balanced, uniform and skewed counts; the weights of one layer are there at a time."""
    for layer in layers:
        stack = stack_of(bench, layer, dtype)
        for n_tokens in tokens:
            for kind in KINDS:
                counts = counts_of(kind, layer, n_tokens)
                for backend in backends:
                    yield _case(bench, stack, counts, kind, backend)


def repeated_cases(bench: Bench, layer: Layer, tokens: Sequence[int], how: tuple[str, str]) -> Iterator[Case]:
    """Uniform counts on weights that every call finds in the cache, as far as they fit; `how`: back end, data type."""
    backend, dtype = how
    stack = stack_of(bench, layer, dtype, copies=1)
    for n_tokens in tokens:
        yield _case(bench, stack, counts_of("uniform", layer, n_tokens), "uniform", backend)


def counts_of(kind: str, layer: Layer, n_tokens: int) -> Counts:
    """Tokens of every expert, int64[expert]: even, as uniform routing draws them, or by Zipf's law."""
    total, n = n_tokens * layer.top_k, layer.n_experts
    if kind == "balanced":
        return total // n + (np.arange(n) < total % n)
    rng = np.random.default_rng([n_tokens, n, layer.top_k])
    popularity = np.zeros(n) if kind == "uniform" else -SKEW * np.log(np.arange(1, n + 1))
    # Gumbel's top-k trick draws k distinct experts of a token by their popularity (Vieira 2014; Kool, arXiv 1903.06059)
    scores = popularity + rng.gumbel(size=(n_tokens, n))
    chosen = np.argsort(-scores, axis=1)[:, : layer.top_k]
    return np.bincount(chosen.ravel(), minlength=n)


def ids_of(counts: Counts, top_k: int) -> NDArray[np.int64]:
    """Distinct experts [token, k] with the given counts, none of which exceeds the number of tokens."""
    flat = np.repeat(np.arange(len(counts)), counts)
    return np.ascontiguousarray(flat.reshape(top_k, -1).T)


def stack_of(bench: Bench, layer: Layer, dtype: str, copies: int | None = None) -> Stack:
    """Copies of a layer's weights: as many as stated, or enough to exceed the cache."""
    layer_bytes = layer.expert_values * layer.n_experts * (4 if dtype == "fp32" else 2)
    number = copies or bench.copies_of(layer_bytes)
    return Stack(layer=layer, dtype=dtype, copies=tuple(_weights(bench, layer, dtype) for _ in range(number)))


def _case(bench: Bench, stack: Stack, counts: Counts, kind: str, backend: str) -> Case:
    """Experts of one layer with the given counts. A stack of one copy is a measurement of repeated weights."""
    layer = stack.layer
    shape = {
        "moe_dtype": LONG_NAMES[stack.dtype], "num_tokens": int(counts.sum()) // layer.top_k,
        "hidden_size": layer.hidden, "inter_size": layer.intermediate, "topk": layer.top_k,
        "num_experts": layer.n_experts, "moe_tp_size": 1, "moe_ep_size": 1, "distribution": kind,
        "kernel_source": f"torch_{backend}", "weights": "repeated" if len(stack.copies) == 1 else "rotating",
        "expert_tokens": " ".join(map(str, counts.tolist())),
    }  # fmt: skip
    return Case(shape=shape, measure=partial(_measure, bench, stack, counts, backend))


def _measure(bench: Bench, stack: Stack, counts: Counts, backend: str) -> Row:
    """One point; turns walk through all experts of all copies, or repeat the same ones where there is one copy."""
    layer, copies = stack.layer, stack.copies
    x = bench.randn(int(counts.sum()) // layer.top_k, layer.hidden, dtype=stack.dtype)
    active = int((counts > 0).sum())
    per_copy = layer.n_experts // active if len(copies) > 1 else 1
    moved = [np.roll(-np.sort(-counts), place * active) for place in range(per_copy)]
    routings = [routing_of(bench, one, layer.top_k, x) for one in moved]
    run = BACKENDS[backend]

    def turn_of(turn: int) -> torch.Tensor:
        return run(x, routings[turn % per_copy], copies[turn // per_copy % len(copies)])

    return timed(bench.time(turn_of, graph=backend == "grouped"))


def routing_of(bench: Bench, counts: Counts, top_k: int, x: torch.Tensor) -> Routing:
    """The routing of tokens x [token, hidden] that gives every expert its count, with equal weights."""
    ids = torch.from_numpy(ids_of(counts, top_k)).to(bench.device)
    return Routing(ids, torch.full(ids.shape, 1.0 / top_k, device=bench.device, dtype=x.dtype))


def _weights(bench: Bench, layer: Layer, dtype: str) -> ExpertWeights:
    return ExpertWeights(
        bench.randn(layer.n_experts, layer.hidden, 2 * layer.intermediate, dtype=dtype),
        bench.randn(layer.n_experts, layer.intermediate, layer.hidden, dtype=dtype),
    )
