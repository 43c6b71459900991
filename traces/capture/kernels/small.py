"""Small kernels of a block: norm with residual sum, choice of experts, embedding; eager against a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from traces.capture.clock import Work
from traces.capture.config import MoeConfig
from traces.capture.decoder import RmsNorm, Router
from traces.capture.experts import Routing, combine, sort_by_expert, swiglu
from traces.capture.kernels.bench import LONG_NAMES, Bench, Case, Row, timed
from traces.capture.kernels.experts import Layer, counts_of, ids_of

CHAIN = 64
"""Small kernels in the chain that is launched eagerly and as one CUDA graph."""


def cases(bench: Bench, layers: Sequence[Layer], tokens: Sequence[int], dtype: str) -> Iterator[Case]:
    """All operations of all layers."""
    for layer in layers:
        for n_tokens in tokens:
            for name in OPERATIONS:
                yield _case(bench, layer, n_tokens, (name, dtype))


def _case(bench: Bench, layer: Layer, n_tokens: int, what: tuple[str, str]) -> Case:
    """One operation on rows that were just written, as in a model; `what`: its name and data type."""
    name, dtype = what
    shape = {
        "operation": name, "dtype": LONG_NAMES[dtype], "tokens": n_tokens, "hidden_size": layer.hidden,
        "num_experts": layer.n_experts, "topk": layer.top_k,
    }  # fmt: skip

    def measure() -> Row:
        x = bench.randn(n_tokens, layer.hidden, dtype=dtype)
        return timed(bench.time(OPERATIONS[name](bench, layer, x), graph=name in CAPTURED))

    return Case(shape=shape, measure=measure)


def _norm(bench: Bench, layer: Layer, x: Tensor) -> Work:
    norm, other = RmsNorm(layer.hidden).to(bench.device, x.dtype), torch.ones_like(x)
    return lambda _turn: norm(x + other)


def _choice(bench: Bench, layer: Layer, x: Tensor) -> Work:
    """What the router does with the scores of all experts."""
    router = _router(layer).to(bench.device, x.dtype)
    logits = bench.randn(len(x), layer.n_experts).to(x.dtype)

    def choose(_turn: int) -> Tensor:
        routing = router.choose(logits.float().softmax(dim=-1))
        return routing.weights.to(x.dtype)

    return choose


def _gate(bench: Bench, layer: Layer, x: Tensor) -> Work:
    """The whole router: product and choice."""
    router = _router(layer).to(bench.device, x.dtype)
    return lambda _turn: router.choose(router.probabilities(x))


def _permute(bench: Bench, layer: Layer, x: Tensor) -> Work:
    """What surrounds the products of experts: sorting rows by expert, and the weighted sum of results."""
    ids = torch.from_numpy(ids_of(counts_of("uniform", layer, len(x)), layer.top_k)).to(bench.device)
    routing = Routing(ids, torch.ones(ids.shape, device=bench.device, dtype=x.dtype))

    def permute(_turn: int) -> Tensor:
        routed = sort_by_expert(x, routing, layer.n_experts)
        return combine(routed.rows, routed, x)

    return permute


def _activation(bench: Bench, layer: Layer, x: Tensor) -> Work:
    """SwiGLU of a dense layer, which halves its width."""
    del bench, layer
    return lambda _turn: swiglu(x)


def _embedding(bench: Bench, layer: Layer, x: Tensor) -> Work:
    table = bench.randn(4096, layer.hidden).to(x.dtype)
    tokens = torch.arange(len(x), device=bench.device) % 4096
    return lambda _turn: torch.nn.functional.embedding(tokens, table)


def _chain(bench: Bench, _layer: Layer, x: Tensor) -> Work:
    """CHAIN additions one after the other: what a launch costs."""
    del bench

    def run(_turn: int) -> Tensor:
        y = x
        for _ in range(CHAIN):
            y = y + 1.0
        return y

    return run


def _router(layer: Layer) -> Router:
    config = MoeConfig(
        vocab_size=1,
        n_layers=1,
        hidden_size=layer.hidden,
        n_heads=1,
        n_kv_heads=1,
        head_dim=2,
        n_experts=layer.n_experts,
        top_k=layer.top_k,
        expert_intermediate_size=1,
    )
    return Router(config)


OPERATIONS: dict[str, Callable[[Bench, Layer, Tensor], Work]] = {
    "norm": _norm,
    "choice": _choice,
    "gate": _gate,
    "permute": _permute,
    "activation": _activation,
    "embedding": _embedding,
    "chain_eager": _chain,
    "chain_graph": _chain,
}
CAPTURED = ("norm", "choice", "activation", "chain_graph")
"""Operations timed inside a CUDA graph, where there are any."""
