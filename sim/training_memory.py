"""What a training step holds beside weights: gradients, states of the optimizer, and what the backward pass needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement, rank_loads
from scenarios.models import BYTES_PER_ACTIVATION, BYTES_PER_VALUE, Attention, GroupedQueryAttention, ModelCard
from scenarios.training_specs import RecomputeName
from sim.gradient_sums import buckets_of
from sim.optimizer import Parameters, divided_parameters, held_parameters, parameters_on_host
from sim.setting import Setting
from sim.training_pricing import LOGIT_BYTES, gradient_dtype

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes on each device, float64[device]; `host_bytes` are what its host keeps for it, of the optimizer."""

    gradient_bytes: Floats
    optimizer_bytes: Floats
    activation_bytes: Floats
    host_bytes: Floats

    @property
    def total_bytes(self) -> Floats:
        """All that is on the device."""
        return self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


def training_memory(setting: Setting, placement: Placement) -> TrainingMemory:
    """Gradients and states of the optimizer by ZeRO stage (arXiv 1910.02054, figure 1), activations by recomputation.

    Where gradients are divided, the sum of a layer's gradients frees the others at once; its buffer is left out.
    """
    spec = setting.training
    held = held_parameters(setting, placement)
    divided = divided_parameters(held, buckets_of(setting, placement))
    states, summed = (divided if spec.zero >= stage else held for stage in (1, 2))
    host_bytes = spec.optimizer.bytes_per_parameter * parameters_on_host(setting, states)
    return TrainingMemory(
        gradient_bytes=BYTES_PER_VALUE[gradient_dtype(setting)] * (summed.experts + summed.others),
        optimizer_bytes=spec.optimizer.bytes_per_parameter * (states.experts + states.others) - host_bytes,
        activation_bytes=activation_bytes(setting, placement),
        host_bytes=host_bytes,
    )


def divided_weights(setting: Setting, placement: Placement) -> Parameters:
    """Share of weights that a device keeps between layers: all, or with ZeRO stage 3 its part."""
    held = held_parameters(setting, placement)
    kept = divided_parameters(held, buckets_of(setting, placement)) if setting.training.zero == 3 else held
    return Parameters(experts=kept.experts / np.maximum(held.experts, 1), others=kept.others / held.others)


def activation_bytes(setting: Setting, placement: Placement) -> Floats:
    """Bytes kept for the backward pass of one microbatch, float64[device].

    Tokens that a rank's experts work on are those expected on the fitted part of the trace. Whole layers computed again
    leave their inputs, and all of the fullest layer while its turn is.
    """
    model, workload, recompute = setting.model, setting.workload, setting.training.recompute
    tokens = float(workload.tokens_per_device)
    loads = rank_loads(placement, setting.fit_loads.astype(np.float64))
    routed = tokens * setting.layout.n_devices * model.top_k
    rows = np.repeat(loads / loads.sum(axis=1, keepdims=True) * routed, setting.layout.tp, axis=1)
    width = BYTES_PER_ACTIVATION[model.activation_dtype]
    moe_row = {layer: row for row, layer in enumerate(model.moe_layers)}

    def of_layer(layer: int, kept: RecomputeName) -> Floats:
        own = tokens * token_values(model, layer in moe_row, kept) * width + tokens * _fp32_bytes(model)
        if layer not in moe_row:
            return np.full(setting.layout.n_devices, own)
        routed_bytes: Floats = rows[moe_row[layer]] * row_values(model, kept, setting.layout.tp) * width
        return own + routed_bytes

    logits = tokens * (LOGIT_BYTES * model.vocab_size + width * model.hidden_size)
    if recompute == "full":
        inputs = model.n_layers * tokens * model.hidden_size * width
        fullest = np.max([of_layer(layer, "none") for layer in range(model.n_layers)], axis=0)
        return np.asarray(inputs + np.maximum(fullest, logits))
    return np.asarray(np.sum([of_layer(layer, recompute) for layer in range(model.n_layers)], axis=0) + logits)


def token_values(model: ModelCard, is_moe: bool, kept: RecomputeName) -> float:
    """Values of a layer that are kept for each of a device's own tokens.

    Inputs of both norms and their results, inputs and results of attention, inputs of the activation functions of
    shared experts or the dense FFN and their results. Of a dense layer with n_heads x head_dim = h, I = 4 h and two
    matrices these are 16 h: 34 bytes of Korthikanti et al. (arXiv 2205.05198, equation 2) without the 5 a s / h that
    flash attention computes again, and without two masks of dropout. Selective recomputation leaves results of norms
    and of activation functions out.
    """
    hidden = model.hidden_size
    inner = model.shared_intermediate_size if is_moe else model.dense_intermediate_size
    gated = model.gated if is_moe else model.dense_gated
    values = 2.0 * hidden + attention_values(model.attention) + (2 if gated else 1) * inner
    if is_moe and model.bottleneck_size is not None:
        values += 2 * model.bottleneck_size
    return values if kept == "selective" else values + 2 * hidden + inner


def row_values(model: ModelCard, kept: RecomputeName, tp: int) -> float:
    """Values that are kept for each row that a rank's experts work on, of an expert shared by `tp` devices.

    Input and result, inputs of the activation function and its result: 2 h + 3 I where gated, as the terms with k of
    MegaScale-MoE (arXiv 2505.11432, section 4), 2 k + 3 k f of h.
    """
    inner = model.expert_intermediate_size / tp
    inputs = 2.0 * model.exchange_size + (2 if model.gated else 1) * inner
    return inputs if kept == "selective" else inputs + inner


def attention_values(attention: Attention) -> float:
    """Values that attention keeps for a token: queries, keys, values, latents and the result, all heads."""
    heads = attention.n_heads
    if isinstance(attention, GroupedQueryAttention):
        return float(2 * heads * attention.head_dim + attention.kv_values_per_token())
    key = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    latents = (attention.q_lora_rank or 0) + attention.kv_values_per_token()
    return float(latents + heads * (2 * key + 2 * attention.v_head_dim))


def _fp32_bytes(model: ModelCard) -> float:
    """Bytes of a token's log-sum of each head, and of the router's scores."""
    return 4.0 * (model.attention.n_heads + model.n_experts)
