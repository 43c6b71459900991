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
from scenarios.workload_specs import WorkloadSpec, tokens_by_phase
from sim.setting import Setting


def used_laws(setting: Setting) -> dict[str, Fitted]:
    """ "moe fp8" -> constants, for every law that prices the setting's computing, each once."""
    kernels = setting.cluster.device.kernels
    blocks = [*(("moe", dtype) for dtype in expert_dtypes(setting)), *_blocks(setting.model, setting.workload)]
    laws = {f"{block} {dtype}": kernels.find(block, dtype) for block, dtype in blocks}
    return {**laws, "launch": kernels.launch()}


def expert_dtypes(setting: Setting) -> list[str]:
    """Data types whose kernel laws price the routed experts, each once."""
    if setting.widths is None:
        return [expert_shape(setting.model, setting.layout.tp).weight_dtype]
    return list(dict.fromkeys(width.dtype for width, _ in setting.widths.used()))


def asked_shapes(setting: Setting) -> dict[tuple[str, str], tuple[Shape, ...]]:
    """(operation, data type) -> shapes that the setting prices, each once, by which tables of kernels hold times."""
    model, tp = setting.model, setting.attention_tp
    experts = expert_shape(model, setting.layout.tp)
    windows = [np.inf]
    if isinstance(model.attention, GroupedQueryAttention) and model.attention.window_tokens is not None:
        windows.append(model.attention.window_tokens)
    shapes: dict[tuple[str, str], dict[Shape, None]] = {
        ("moe", dtype): {moe_shape(experts.hidden_size, experts.intermediate_size, experts.gated): None}
        for dtype in expert_dtypes(setting)
    }
    for block in attention_blocks(model, setting.workload):
        shapes[block, model.kv_dtype] = {attention_key(model.attention, tp, window): None for window in windows}
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


def attention_blocks(model: ModelCard, workload: WorkloadSpec) -> list[str]:
    """Blocks of kernel cards that price the model's attention: of requests, of prompts, or of both in mixed passes."""
    latent = "" if isinstance(model.attention, GroupedQueryAttention) else "mla_"
    phases = zip(("decode", "prefill"), tokens_by_phase(workload), strict=True)
    return [f"{latent}{phase}" for phase, n_tokens in phases if n_tokens]


def _blocks(model: ModelCard, workload: WorkloadSpec) -> list[tuple[str, str]]:
    gemms = dict.fromkeys((model.weight_dtype, model.router_dtype, model.activation_dtype))  # layers, gate, head
    return [
        *(("gemm", dtype) for dtype in gemms),
        *((block, model.kv_dtype) for block in attention_blocks(model, workload)),
    ]
