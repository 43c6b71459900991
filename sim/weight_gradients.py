"""What of a backward pass nothing waits for: the gradients of weights, which a pipeline may put off."""

from __future__ import annotations

import numpy as np

from hwmodels.attention import projection_products
from hwmodels.gemm import mlp_products
from hwmodels.gradients import expert_weight_gradients_s, weight_gradients_s
from hwmodels.moe import expert_shape
from placement.moe_time import tokens_by_rank
from placement.plan import Placement
from placement.reduction import Reduction
from sim.durations import Seconds
from sim.setting import Setting
from sim.training_pricing import gradient_dtype


def weights_s(setting: Setting, placement: Placement, reduction: Reduction) -> Seconds:
    """Time of the gradients of all weights of a step, float64[step] [s]: in each layer that of the busiest device."""
    own_s = sum(_product_s(setting, tokens, n, k, batch, dtype) for tokens, n, k, batch, dtype in _products(setting))
    counts = tokens_by_rank(placement, reduction.slot_tokens)
    shape = expert_shape(setting.model, setting.layout.tp)
    experts_s = expert_weight_gradients_s(counts, shape, setting.cluster.device, gradient_dtype(setting))
    by_step = experts_s.max(axis=-1).sum(axis=0).reshape(setting.batches.n_steps, -1).sum(axis=1)
    return np.asarray(own_s + by_step)


def _product_s(setting: Setting, tokens: int, n: int, k: int, batch: int, dtype: str) -> float:
    return float(weight_gradients_s(tokens, n, k, dtype, setting.cluster.device, batch))


def _products(setting: Setting) -> list[tuple[int, int, int, int, str]]:
    """(tokens, n, k, batch, data type) of all products of a device outside the routed experts."""
    model, tp, tokens = setting.model, setting.attention_tp, setting.workload.tokens_per_device
    hidden, n_moe, dtype = model.hidden_size, len(model.moe_layers), model.weight_dtype
    found: list[tuple[int, int, int, int, str]] = []
    found += [(tokens * tp, *one, dtype) for one in projection_products(model.attention, hidden, tp)] * model.n_layers
    found += [(tokens, model.n_experts, hidden, 1, model.router_dtype)] * n_moe
    for width, gated, layers in (
        (model.shared_intermediate_size, model.gated, n_moe),
        (model.dense_intermediate_size, model.dense_gated, model.n_layers - n_moe),
    ):
        if width:
            found += [(tokens, n, k, 1, dtype) for n, k in mlp_products(hidden, width, gated)] * layers
    if (low := model.bottleneck_size) is not None:
        found += [(tokens, low, hidden, 1, dtype), (tokens, hidden, low, 1, dtype)] * n_moe
    if setting.is_last:
        found.append((tokens * tp, -(-model.vocab_size // tp), hidden, 1, model.activation_dtype))
    return found
