"""What tokens go through before the dispatch and after the combine: compression, or a product with a mask.

LSH-MoE (NeurIPS 2024): a token is rotated by every hash function, and falls into the bucket of its largest rotated
value (cross-polytope); of the tokens of one expert, those in one bucket travel as their mean, and each adds its
distance from the mean to what comes back.

The einsum of GShard (arXiv 2006.16668), Fairseq, and DeepSpeed before its kernels fills the buffers of experts by a
dense product with a mask of tokens x experts x capacity, and takes results back by another one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwmodels.gemm import gemm_s, stream_s
from scenarios.models import BYTES_PER_ACTIVATION
from scenarios.schedule_specs import PayloadSpec
from sim.durations import Duration
from sim.pricing import parts_of
from sim.program import Layer, Step, Work
from sim.setting import Setting
from sim.training import BACKWARD


def wrapped(step: Step, before: str, after: str) -> Step:
    """The step with works of these kinds at the tokens of a layer: last before they leave, first when they are back."""
    layers = tuple(layer if layer.gate is None else _wrapped(layer, layer.gate, before, after) for layer in step.layers)
    return replace(step, layers=layers, others=tuple(wrapped(other, before, after) for other in step.others))


def _wrapped(layer: Layer, gate: Work, before: str, after: str) -> Layer:
    return replace(
        layer,
        before_dispatch=(*layer.before_dispatch, replace(gate, kind=before)),
        after_combine=(replace(gate, kind=after), *layer.after_combine),
    )


def payload_prices(setting: Setting, payload: PayloadSpec, n_parts: int) -> dict[str, tuple[Duration, ...]]:
    """Times of "compress" and "restore" of one layer: kind -> [part] -> float64[step, device] [s].

    compress  one product of all n tokens with an h x h rotation for every hash function; then a pass that reads the
              rotated values and, for each of k choices, the token, and writes the means.
    restore   a pass that reads every token, for each choice its mean and what came back for it, and writes the sums.
    Sorting by bucket moves 4-byte keys and is left out: 2 h bytes of a token outweigh it some hundred times.
    """
    return _by_kind([_compression(part, payload) for part in parts_of(setting, n_parts)])


def encode_prices(setting: Setting, n_parts: int) -> dict[str, tuple[Duration, ...]]:
    """Times of "encode" and "decode" of one layer: kind -> [part] -> float64[step, device] [s].

    encode  the mask of n tokens x k n places in the buffers of all experts (capacity factor 1) is written, and its
            product with n x h tokens fills the buffers: 2 k n^2 h FLOP.
    decode  the product of the mask with what came back.

    Backward tokens get their gradients by one product; what came back and the mask, which holds the gate's weights, by
    one each.
    """
    return _by_kind([_einsum(part) for part in parts_of(setting, n_parts)])


def _by_kind(parts: list[dict[str, Duration]]) -> dict[str, tuple[Duration, ...]]:
    return {kind: tuple(prices[kind] for prices in parts) for kind in parts[0]}


def _einsum(setting: Setting) -> dict[str, Duration]:
    model, device, n = setting.model, setting.cluster.device, setting.workload.tokens_per_device
    shape, size, dtype = setting.batches.tokens.shape[:2], model.exchange_size, model.weight_dtype
    places = n * model.top_k
    filled_s, taken_s = gemm_s(places, size, n, dtype, device), gemm_s(n, size, places, dtype, device)
    masked_s = stream_s(n * places * BYTES_PER_ACTIVATION[model.activation_dtype], device)
    times_s = {"encode": masked_s + filled_s, "decode": taken_s}
    if setting.trains:
        times_s["encode" + BACKWARD] = taken_s
        times_s["decode" + BACKWARD] = filled_s + gemm_s(n, places, size, dtype, device)
    return {kind: np.full(shape, time_s) for kind, time_s in times_s.items()}


def _compression(setting: Setting, payload: PayloadSpec) -> dict[str, Duration]:
    model, device = setting.model, setting.cluster.device
    size, k = model.exchange_size, model.top_k
    tokens = np.full(setting.batches.tokens.shape[:2], setting.workload.tokens_per_device)
    rotated_s = payload.hashes * gemm_s(tokens, size, size, model.weight_dtype, device)
    row_bytes = tokens * (size * BYTES_PER_ACTIVATION[model.activation_dtype])
    return {
        "compress": rotated_s + stream_s(row_bytes * (payload.hashes + k + k * payload.rate), device),
        "restore": stream_s(row_bytes * (2 + 2 * k), device),
    }
