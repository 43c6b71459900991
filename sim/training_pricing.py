"""Durations of the backward pass and of the optimizer: what a device does with its own tokens and weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hwmodels.attention import attention_projections_s, projection_products
from hwmodels.devices import kept_bytes
from hwmodels.gemm import norm_s, stream_s
from hwmodels.gradients import (
    CORE_BACKWARD,
    expert_weight_gradients_s,
    mlp_gradients_s,
    product_gradients_s,
)
from hwmodels.launch import activation_bytes, top_k_bytes
from hwmodels.moe import expert_shape
from placement.moe_time import expert_times_s, tokens_by_rank
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.schedule_specs import ExchangeSpec
from sim.durations import Seconds
from sim.kernel_pricing import machine_of
from sim.setting import Setting

Tokens = NDArray[np.integer]
LOGIT_BYTES = 4  # logits and their softmax are fp32


def backward_prices(setting: Setting, tokens: Tokens, forward: dict[str, Seconds]) -> dict[str, Seconds]:
    """Times of the backward pass for the works that a device does for its own tokens: kind -> float64[step, device].

    forward  times of the forward pass by kind; attention of windowed layers among them, where there are any. With
             selective recomputation norms and activation functions are computed again.
    """
    model, device, dtype = setting.model, setting.cluster.device, setting.model.weight_dtype
    hidden, tp = model.hidden_size, setting.attention_tp
    norm = norm_s(tokens, hidden, model.activation_dtype, device)
    norms = norm * (2 if setting.training.recompute == "selective" else 1)
    prices: dict[str, Seconds] = {
        kind: norms + _attention(setting, tokens, forward[kind]) for kind in forward if kind.endswith("attention")
    }
    gate_s = product_gradients_s(tokens, model.n_experts, hidden, model.router_dtype, device)
    prices["gate"] = norms + gate_s + stream_s(top_k_bytes(tokens, model.n_experts, model.top_k), device)
    positions = tokens * tp
    head_s = product_gradients_s(positions, -(-model.vocab_size // tp), hidden, model.activation_dtype, device)
    # The loss reads the logits twice and leaves their gradients in place.
    prices["head"] = norm + head_s + stream_s(tokens * (3.0 * LOGIT_BYTES * model.vocab_size), device)
    for kind, width, gated, own in (
        ("shared", model.shared_intermediate_size, model.gated, 0.0),
        ("mlp", model.dense_intermediate_size, model.dense_gated, norms),
    ):
        if width:
            again = _activation_again_s(setting, tokens, width, gated)
            prices[kind] = own + again + mlp_gradients_s(tokens, hidden, width, gated, dtype, device)
    if (low := model.bottleneck_size) is not None:
        prices["descend"] = product_gradients_s(tokens, low, hidden, dtype, device)
        prices["ascend"] = product_gradients_s(tokens, hidden, low, dtype, device)
    return prices


def _attention(setting: Setting, tokens: Tokens, forward_s: Seconds) -> Seconds:
    """Gradients of projections and core; the core's forward time is what norm and projections leave of `forward_s`."""
    model, device, tp = setting.model, setting.cluster.device, setting.attention_tp
    hidden, dtype, grouped = model.hidden_size, model.weight_dtype, tokens * tp
    norm = norm_s(grouped, hidden, model.activation_dtype, device)
    core_s = forward_s - norm - attention_projections_s(grouped, model.attention, hidden, tp, dtype, device)
    products = projection_products(model.attention, hidden, tp)
    projections_s = sum(product_gradients_s(grouped, n, k, dtype, device, batch) for n, k, batch in products)
    return np.asarray(projections_s + CORE_BACKWARD * core_s)


def _activation_again_s(setting: Setting, tokens: Tokens, width: int, gated: bool) -> Seconds | float:
    if setting.training.recompute != "selective":
        return 0.0
    moved = activation_bytes(tokens, width, gated, kept_bytes(setting.model.weight_dtype))
    return stream_s(moved, setting.cluster.device)


def expert_gradients_s(setting: Setting, placement: Placement, reduction: Reduction, exchange: ExchangeSpec) -> Seconds:
    """Time of the backward pass of the experts of every rank, float64[layer, part, rank] [s].

    Gradients of inputs by the forward law with the weights transposed, then those of the weights.
    """
    model, device, machine = setting.model, setting.cluster.device, machine_of(setting, exchange)
    shape = expert_shape(model, setting.layout.tp)
    inputs_s = expert_times_s(machine, placement, reduction, replace(shape, transposed=True))
    counts = tokens_by_rank(placement, reduction.slot_tokens)
    weights_s = expert_weight_gradients_s(counts, shape, device, gradient_dtype(setting))
    again_s = _activation_again_s(
        setting, counts.sum(axis=-1), model.expert_intermediate_size // setting.layout.tp, model.gated
    )
    return np.asarray(inputs_s + weights_s + again_s)


def gradient_dtype(setting: Setting) -> str:
    """Data type in which gradients are kept and summed."""
    return setting.training.gradient_dtype or setting.model.activation_dtype
