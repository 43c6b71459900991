"""What a step asks of the hardware at least, whatever plan and schedule: multiplications, and bytes read from memory.

Demands are those of all devices together, as means over the steps of a setting. The layout of attention is the
scenario's own; experts may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hwmodels.attention import decode_work, latent_shape, local_heads, projection_products, windowed_context
from hwmodels.gemm import mlp_products
from hwmodels.widths import ExpertWidths, Width
from placement.moe_time import tokens_by_expert
from placement.plan import FloatArray, Placement
from placement.reduction import Reduction
from scenarios.models import BYTES_PER_VALUE, DType, GroupedQueryAttention
from scenarios.workload_specs import logit_positions, tokens_by_phase
from sim.pricing import layer_windows
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
    """Of a mean step, summed over layers: tokens times their experts, and experts that any token visits.

    by_width  the same of the experts of every width, where they have several.
    """

    routed: float
    active: float
    by_width: tuple[tuple[Width, float, float], ...] = ()


def visits_of(placement: Placement, reduction: Reduction, widths: ExpertWidths | None = None) -> Visits:
    """What a reduction says of experts, their replicas taken together; the same for every plan."""
    n_layers, n_parts, _ = reduction.slot_tokens.shape
    n_steps = n_parts // reduction.n_chunks
    by_step = reduction.slot_tokens.reshape(n_layers, n_steps, reduction.n_chunks, -1).sum(axis=2)
    visited = tokens_by_expert(placement, by_step)
    return _visits(visited.mean(axis=1), (visited > 0).mean(axis=1), widths)


def slot_visits(placement: Placement, reduction: Reduction, widths: ExpertWidths | None = None) -> Visits:
    """What a reduction says of slots: every replica that a token visits counts."""
    n_layers, n_parts, _ = reduction.slot_tokens.shape
    n_steps = n_parts // reduction.n_chunks
    experts = placement.for_rows(n_layers).expert_of_slot
    routed = np.zeros((n_layers, placement.n_experts))
    active = np.zeros_like(routed)
    for layer, (of_slot, tokens) in enumerate(zip(experts, reduction.slot_tokens, strict=True)):
        np.add.at(routed[layer], of_slot, tokens.sum(axis=0, dtype=np.int64) / n_steps)
        np.add.at(active[layer], of_slot, np.count_nonzero(tokens, axis=0) / n_steps)
    return _visits(routed, active, widths)


def _visits(routed: FloatArray, active: FloatArray, widths: ExpertWidths | None) -> Visits:
    """The sums of float64[layer, expert]."""
    used = () if widths is None else widths.used()
    return Visits(
        routed=float(routed.sum()),
        active=float(active.sum()),
        by_width=tuple((width, float(routed[own].sum()), float(active[own].sum())) for width, own in used),
    )


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
    n_decode, _ = tokens_by_phase(setting.workload)
    decoding = decode_work(_pairs(setting, slice(n_decode)), model.attention, 1, model.kv_dtype)
    flop, cached = (float(one) for one in decoding)
    prompts = _pairs(setting, slice(n_decode, None)) * _prompt_flop_per_pair(setting)
    multiplied: DType = "fp32" if model.kv_dtype == "fp32" else "bf16"
    yield Demand(kind="attention", dtype=multiplied, flop=flop + prompts, read_bytes=cached)


def _pairs(setting: Setting, tokens: slice) -> float:
    """Pairs of a token and one that it attends to, of some of the tokens in all layers of a mean step."""
    contexts = setting.batches.contexts[..., tokens]
    pairs = sum(float(windowed_context(contexts, window).sum()) * n for window, n in layer_windows(setting.model))
    return pairs / setting.batches.n_steps


def _prompt_flop_per_pair(setting: Setting) -> float:
    """FLOP of a prompt's token and a token it attends to, over all heads."""
    attention = setting.model.attention
    if isinstance(attention, GroupedQueryAttention):
        return 4.0 * attention.n_heads * attention.head_dim
    latent = latent_shape(attention, 1)
    width = min(latent.cache_dim + latent.latent_dim, latent.key_dim + latent.value_dim)
    return 2.0 * local_heads(attention, 1) * width


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
    """Of experts in several widths FLOP count in the rate of the fastest."""
    model = setting.model
    own: DType = model.expert_dtype or model.weight_dtype
    read_bytes = visits.active * model.expert_bytes
    if setting.widths is not None:
        peaks = {width.dtype: setting.cluster.device.peak_flop_per_s(width.dtype) for width, *_ in visits.by_width}
        own = max(peaks, key=lambda dtype: peaks[dtype])
        read_bytes = sum(active * width.value_bytes for width, _, active in visits.by_width) * model.expert_parameters
    return Demand(
        kind="experts",
        dtype=own,
        flop=2.0 * visits.routed * model.expert_parameters,
        read_bytes=read_bytes,
    )


def _head(setting: Setting) -> Demand:
    model, tp, n_devices = setting.model, setting.attention_tp, setting.cluster.n_devices
    if not setting.is_last:
        return Demand(kind="head", dtype=model.activation_dtype, flop=0.0, read_bytes=0.0)
    positions = logit_positions(setting.workload)
    sizes = [(-(-model.vocab_size // tp), model.hidden_size, 1)]
    return _products("head", model.activation_dtype, sizes, float(positions * tp * n_devices), n_devices)
