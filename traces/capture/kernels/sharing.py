"""How much longer work takes beside other work: on another core of the CPU, or on another stream of the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch

from traces.capture.experts import expert, loop
from traces.capture.kernels.attention import Call, Heads, worker_of
from traces.capture.kernels.bench import Bench, Case, Row
from traces.capture.kernels.beside import beside
from traces.capture.kernels.experts import Layer, Stack, counts_of, routing_of, stack_of

PAIRS = 5
"""Times that a point is measured alone and beside, in turns, so that drifts of the clock cancel."""
Maker = Callable[[Bench, Stack], Callable[[int], object]]


SPUN_SMS = (8, 16, 32, 64)
"""Multiprocessors that spinning kernels hold."""


def has_triton() -> bool:
    """Whether spinning kernels can be compiled here."""
    return find_spec("triton") is not None


def neighbours_of(device: torch.device) -> list[str]:
    """What runs beside; on a GPU with Triton also kernels that hold multiprocessors."""
    spinning = device.type == "cuda" and has_triton()
    return [*WORKS, *(f"spin on {sms}" for sms in SPUN_SMS if spinning)]


def cases(bench: Bench, layer: Layer, works: Sequence[str], neighbours: Sequence[str]) -> Iterator[Case]:
    """All works beside all neighbours."""
    stack = stack_of(bench, layer, "fp32" if bench.device.type == "cpu" else "bf16")
    for name in works:
        for neighbour in neighbours:
            shape: Row = {"work": name, "beside": neighbour}
            yield Case(shape=shape, measure=partial(_measure, bench, stack, name, neighbour))


def _measure(bench: Bench, stack: Stack, name: str, neighbour: str) -> Row:
    """One work alone and beside its neighbour, in turns; the factor is the median of the turns' own."""
    work, other = WORKS[name](bench, stack), _without_turns(_neighbour(bench, stack, neighbour))
    alone, together = [], []
    for _ in range(PAIRS):
        alone.append(bench.time(work).median_s)
        with beside(other, bench.device):
            together.append(bench.time(work).median_s)
    factors = np.array(together) / np.array(alone)
    p10, median, p90 = np.quantile(factors, [0.1, 0.5, 0.9]).tolist()
    return {
        "alone": f"{np.median(alone) * 1e3:.6g}",
        "together": f"{np.median(together) * 1e3:.6g}", "factor": f"{median:.4g}", "factor_p10": f"{p10:.4g}",
        "factor_p90": f"{p90:.4g}", "repeats": PAIRS,
    }  # fmt: skip


def _neighbour(bench: Bench, stack: Stack, name: str) -> Callable[[int], object]:
    if name in WORKS:
        return WORKS[name](bench, stack)
    from traces.capture.kernels.spin import spinner  # needs Triton

    return spinner(int(name.rpartition(" ")[2]), bench.device)


def _without_turns(work: Callable[[int], object]) -> Callable[[], object]:
    """The work with turns of its own."""
    state = {"turn": 0}

    def step() -> object:
        state["turn"] += 1
        return work(state["turn"])

    return step


def _gemm(bench: Bench, stack: Stack) -> Callable[[int], object]:
    """A product bound by arithmetic."""
    a = bench.randn(512, 512, dtype=stack.dtype)
    return lambda _turn: torch.matmul(a, a)


def _experts(bench: Bench, stack: Stack, n_tokens: int = 4) -> Callable[[int], object]:
    """All experts of a layer for a few tokens: bound by their weights."""
    layer, copies = stack.layer, stack.copies
    x = bench.randn(n_tokens, layer.hidden, dtype=stack.dtype)
    routing = routing_of(bench, counts_of("balanced", layer, n_tokens), layer.top_k, x)
    return lambda turn: loop(x, routing, copies[turn % len(copies)])


def _one_expert(bench: Bench, stack: Stack, n_tokens: int = 2) -> Callable[[int], object]:
    """One expert after the other, with few tokens, as a host computes missed ones."""
    layer, copies = stack.layer, stack.copies
    rows = bench.randn(n_tokens, layer.hidden, dtype=stack.dtype)
    return lambda turn: expert(rows, copies[turn // layer.n_experts % len(copies)], turn % layer.n_experts)


def _copy(bench: Bench, stack: Stack) -> Callable[[int], object]:
    """Copies of one expert's weights, from the host."""
    copies, n_experts = stack.copies, stack.layer.n_experts
    slots = torch.empty_like(copies[0].up[:4])
    host = [one.up.cpu().pin_memory() for one in copies] if bench.device.type == "cuda" else [c.up for c in copies]
    return lambda turn: slots[turn % 4].copy_(host[turn // n_experts % len(host)][turn % n_experts], non_blocking=True)


def _attention(bench: Bench, stack: Stack) -> Callable[[int], object]:
    """Decode attention of 16 requests of 256 tokens."""
    heads = Heads(n_heads=8, n_kv_heads=4, head_dim=64)
    return worker_of(bench, heads, Call(requests=16, past=256, new=1), stack.dtype)


WORKS: dict[str, Maker] = {
    "gemm": _gemm,
    "experts": _experts,
    "expert": _one_expert,
    "copy": _copy,
    "attention": _attention,
}
"""Name -> maker of the work; each serves as neighbour, too."""
