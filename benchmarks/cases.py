"""Made-up inputs of the benchmarks: DeepSeek-V3-like routing, and durations with skew."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.layout import ExpertLayout
from placement.plan import Placement
from sim.durations import Duration, ExchangeTime
from sim.policies import POLICIES
from sim.program import Chunk, Layer, OpList, Step, Work, compile_program
from traces.routing import Provenance, RoutingTrace

N_LAYERS, N_EXPERTS, TOP_K = 58, 256, 8


def moe_step(n_layers: int, chunks: int) -> Step:
    """MoE layers of attention, gate, dispatch, experts and combine."""

    def layer(number: int) -> Layer:
        parts = tuple(
            Chunk(Work("dispatch", number, c), Work("experts", number, c), Work("combine", number, c))
            for c in range(chunks)
        )
        return Layer(attention=Work("attention", number), gate=Work("gate", number), chunks=parts)

    return Step(layers=tuple(layer(number) for number in range(n_layers)), head=Work("head"))


def moe_program(policy: str, n_layers: int, chunks: int = 1) -> OpList:
    """The op list of `policy` for `n_layers` MoE layers."""
    return compile_program(POLICIES[policy], moe_step(n_layers, chunks))


def skewed_durations(op_list: OpList, shape: tuple[int, ...], rng: np.random.Generator) -> list[Duration]:
    """Lognormal durations float64[shape] of every operation."""

    def times() -> NDArray[np.float64]:
        return 1e-5 * np.exp(0.3 * rng.standard_normal(shape))

    return [
        ExchangeTime(send_s=times(), receive_s=times(), group_size=shape[-1]) if op.is_exchange else times()
        for op in op_list.ops
    ]


def v3_trace(n_tokens: int, rng: np.random.Generator, n_layers: int = N_LAYERS) -> RoutingTrace:
    """Skewed routing over 256 experts, top-8 without repetition, in sequences of 256 tokens."""
    ids = np.empty((n_layers, TOP_K, n_tokens), np.uint8)
    for layer in range(n_layers):
        popularity = 0.5 * rng.standard_normal(N_EXPERTS).astype(np.float32)
        for begin in range(0, n_tokens, 8192):
            noise = rng.random((min(8192, n_tokens - begin), N_EXPERTS), dtype=np.float32)
            scores = popularity - np.log(-np.log(noise + 1e-9) + 1e-9)
            ids[layer, :, begin : begin + len(noise)] = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K].T
    offsets = np.append(np.arange(0, n_tokens, 256), n_tokens)
    return RoutingTrace(
        ids=ids,
        n_experts=N_EXPERTS,
        offsets=offsets,
        positions=(np.arange(n_tokens) % 256).astype(np.int32),
        moe_layers=tuple(range(3, 3 + n_layers)),
        phase="decode",
        provenance=Provenance(model="deepseek-v3", source="benchmark", kind="synthetic"),
    )


def spread(n_ranks: int, n_layers: int = N_LAYERS) -> Placement:
    """One or more slots a rank; beyond 256 ranks experts are repeated."""
    n_slots = n_ranks * -(-N_EXPERTS // n_ranks)
    slots = np.broadcast_to(np.arange(n_slots) % N_EXPERTS, (n_layers, n_slots))
    return Placement.from_slots(slots, n_ranks, n_experts=N_EXPERTS, name=f"EP{n_ranks}")


def nodes_of_eight(n_devices: int) -> ExpertLayout:
    return ExpertLayout(n_devices=n_devices, devices_per_node=8)
