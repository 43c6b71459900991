"""What a step asks of the hardware at least, whatever plan and schedule: multiplications, and bytes read from memory.

Demands are those of all devices together, as means over the steps of a setting. The layout of attention is the
scenario's own; experts may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hwmodels.attention import latent_shape, local_heads, projection_products, windowed_context
from hwmodels.gemm import mlp_products
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.models import BYTES_PER_VALUE, DType, GroupedQueryAttention
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Multiplications of one kind of work in a step [FLOP], in the rate of `dtype`, and bytes that it reads."""

    kind: str
    dtype: str
    flop: float
    read_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """Of a mean step, summed over layers: tokens times their experts, and experts that any token visits."""

    routed: float
    active: float


def visits_of(placement: Placement, reduction: Reduction) -> Visits:
    """What a reduction says of experts, their replicas taken together; the same for every plan."""
    n_layers, n_parts, _ = reduction.slot_tokens.shape
    n_steps = n_parts // reduction.n_chunks
    active = 0
    for layer in range(n_layers):
        by_step = reduction.slot_tokens[layer].reshape(n_steps, reduction.n_chunks, -1).sum(axis=1)
        of_expert = placement.expert_of_slot[layer][:, None] == np.arange(placement.n_experts)
        active += int(np.count_nonzero(by_step @ of_expert))
    return Visits(routed=float(reduction.slot_tokens.sum(dtype=np.int64)) / n_steps, active=active / n_steps)


def demands(setting: Setting, visits: Visits) -> tuple[Demand, ...]:
    """All work of a mean step of the setting.

    Weights of attention, dense layers, router and head are read once by every device that holds them; an expert's once
    in a step where any token visits it; a cached token once for each request that attends to it, in decode. What may
    stay in caches (activations, a prefill's own keys) is not counted.
    """
    return (*_attention(setting), *_feed_forward(setting), _experts(setting, visits), _head(setting))


def _products(kind: str, dtype: str, sizes: list[tuple[int, int, int]], rows: float, copies: float) -> Demand:
    """Dense products (n, k, batch) of `rows` tokens altogether; `copies` devices read the weights."""
    weights = float(sum(n * k * batch for n, k, batch in sizes))
    return Demand(kind=kind, dtype=dtype, flop=2 * rows * weights, read_bytes=copies * weights * BYTES_PER_VALUE[dtype])


def _attention(setting: Setting) -> Iterator[Demand]:
    model, tp = setting.model, setting.attention_tp
    n_devices = setting.cluster.n_devices
    tokens = float(setting.workload.tokens_per_device * tp * n_devices)  # devices of a group share all its tokens
    sizes = projection_products(model.attention, model.hidden_size, tp) * model.n_layers
    yield _products("projections", model.weight_dtype, sizes, tokens, n_devices)
    flop_per_pair, values_per_token = _per_pair(setting)
    pairs = sum(float(windowed_context(setting.batches.contexts, w).sum()) * n for w, n in _windows(setting))
    pairs /= setting.batches.n_steps
    cached = pairs * values_per_token * BYTES_PER_VALUE[model.kv_dtype] if setting.workload.phase == "decode" else 0.0
    multiplied: DType = "fp32" if model.kv_dtype == "fp32" else "bf16"
    yield Demand(kind="attention", dtype=multiplied, flop=pairs * flop_per_pair, read_bytes=cached)


def _windows(setting: Setting) -> list[tuple[int | None, int]]:
    """(window, layers that have it)."""
    model = setting.model
    attention = model.attention
    if not isinstance(attention, GroupedQueryAttention) or attention.window_tokens is None:
        return [(None, model.n_layers)]
    windowed = len(range(0, model.n_layers, attention.windowed_every))
    return [(attention.window_tokens, windowed), (None, model.n_layers - windowed)]


def _per_pair(setting: Setting) -> tuple[float, float]:
    """FLOP of a query token and a token it attends to, over all heads, and cached values that are read for it."""
    attention = setting.model.attention
    if isinstance(attention, GroupedQueryAttention):
        return 4.0 * attention.n_heads * attention.head_dim, float(attention.kv_values_per_token())
    latent = latent_shape(attention, 1)
    absorbed = latent.cache_dim + latent.latent_dim
    expanded = latent.key_dim + latent.value_dim
    width = absorbed if setting.workload.phase == "decode" else min(absorbed, expanded)
    return 2.0 * local_heads(attention, 1) * width, float(attention.kv_values_per_token())


def _feed_forward(setting: Setting) -> Iterator[Demand]:
    model, n_devices = setting.model, setting.cluster.n_devices
    tokens = float(setting.workload.tokens_per_device * n_devices)
    n_moe = len(model.moe_layers)
    gate = [(model.n_experts, model.hidden_size, 1)] * n_moe
    yield _products("router", model.router_dtype, gate, tokens, n_devices)
    if model.bottleneck_size is not None:
        low, high = model.bottleneck_size, model.hidden_size
        yield _products("bottleneck", model.weight_dtype, [(low, high, n_moe), (high, low, n_moe)], tokens, n_devices)
    for kind, width, gated, n_layers in (
        ("shared experts", model.shared_intermediate_size, model.gated, n_moe),
        ("dense layers", model.dense_intermediate_size, model.dense_gated, model.n_layers - n_moe),
    ):
        if width and n_layers:
            sizes = [(n, k, n_layers) for n, k in mlp_products(model.hidden_size, width, gated)]
            yield _products(kind, model.weight_dtype, sizes, tokens, n_devices)


def _experts(setting: Setting, visits: Visits) -> Demand:
    model = setting.model
    return Demand(
        kind="experts",
        dtype=model.expert_dtype or model.weight_dtype,
        flop=2.0 * visits.routed * model.expert_parameters,
        read_bytes=visits.active * model.expert_bytes,
    )


def _head(setting: Setting) -> Demand:
    model, tp, n_devices = setting.model, setting.attention_tp, setting.cluster.n_devices
    positions = 1 if setting.workload.phase == "prefill" else setting.workload.tokens_per_device
    sizes = [(-(-model.vocab_size // tp), model.hidden_size, 1)]
    return _products("head", model.activation_dtype, sizes, float(positions * tp * n_devices), n_devices)
