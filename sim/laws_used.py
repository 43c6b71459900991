"""Which kernel laws a setting uses: operations of its model, by the data types of its weights and cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hwmodels.attention import attention_key, projection_products
from hwmodels.fitted import Fitted
from hwmodels.gemm import mlp_products
from hwmodels.measured_tables import Shape, gemm_shape, moe_shape
from hwmodels.moe import expert_shape
from scenarios.models import GroupedQueryAttention, ModelCard
from scenarios.workload_specs import WorkloadSpec
from sim.setting import Setting


def used_laws(setting: Setting) -> dict[str, Fitted]:
    """ "moe fp8" -> constants, for every law that prices the setting's computing, each once."""
    kernels = setting.cluster.device.kernels
    laws = {f"{block} {dtype}": kernels.find(block, dtype) for block, dtype in _blocks(setting.model, setting.workload)}
    return {**laws, "launch": kernels.launch()}


def asked_shapes(setting: Setting) -> dict[tuple[str, str], tuple[Shape, ...]]:
    """(operation, data type) -> shapes that the setting prices, each once, by which tables of kernels hold times."""
    model, tp = setting.model, setting.attention_tp
    experts = expert_shape(model, setting.layout.tp)
    windows = [np.inf]
    if isinstance(model.attention, GroupedQueryAttention) and model.attention.window_tokens is not None:
        windows.append(model.attention.window_tokens)
    shapes: dict[tuple[str, str], dict[Shape, None]] = {
        ("moe", experts.weight_dtype): {moe_shape(experts.hidden_size, experts.intermediate_size, experts.gated): None},
        (attention_block(model, setting.workload), model.kv_dtype): {
            attention_key(model.attention, tp, window): None for window in windows
        },
    }
    for dtype, n, k in _products(model, tp):
        shapes.setdefault(("gemm", dtype), {})[gemm_shape(n, k)] = None
    return {key: tuple(found) for key, found in shapes.items()}


def _products(model: ModelCard, tp: int) -> Iterator[tuple[str, int, int]]:
    """(data type of weights, n, k) of the dense products of a model, batched ones left out."""
    hidden, dtype = model.hidden_size, model.weight_dtype
    for n, k, batch in projection_products(model.attention, hidden, tp):
        if batch == 1:
            yield dtype, n, k
    for intermediate, gated in (
        (model.shared_intermediate_size, model.gated),
        (model.dense_intermediate_size, model.dense_gated),
    ):
        if intermediate:
            yield from ((dtype, *size) for size in mlp_products(hidden, intermediate, gated))
    yield model.router_dtype, model.n_experts, hidden
    yield model.activation_dtype, -(-model.vocab_size // tp), hidden


def attention_block(model: ModelCard, workload: WorkloadSpec) -> str:
    """Block of kernel cards that prices the model's attention in this phase."""
    latent = "" if isinstance(model.attention, GroupedQueryAttention) else "mla_"
    return f"{latent}{'decode' if workload.phase == 'decode' else 'prefill'}"


def _blocks(model: ModelCard, workload: WorkloadSpec) -> list[tuple[str, str]]:
    gemms = dict.fromkeys((model.weight_dtype, model.router_dtype, model.activation_dtype))  # layers, gate, head
    return [
        ("moe", model.expert_dtype or model.weight_dtype),
        *(("gemm", dtype) for dtype in gemms),
        (attention_block(model, workload), model.kv_dtype),
    ]
