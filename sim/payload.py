"""Compression of tokens by locality-sensitive hashing: what it computes before the dispatch and after the combine.

LSH-MoE (NeurIPS 2024): a token is rotated by every hash function, and falls into the bucket of its largest rotated
value (cross-polytope); of the tokens of one expert, those in one bucket travel as their mean, and each adds its
distance from the mean to what comes back.
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


def compressing(step: Step) -> Step:
    """The step with works that compress a layer's tokens before they leave, and restore them when they are back."""
    layers = tuple(layer if layer.gate is None else _compressing(layer, layer.gate) for layer in step.layers)
    return replace(step, layers=layers, others=tuple(compressing(other) for other in step.others))


def _compressing(layer: Layer, gate: Work) -> Layer:
    compress, restore = replace(gate, kind="compress"), replace(gate, kind="restore")
    return replace(
        layer,
        before_dispatch=(*layer.before_dispatch, compress),
        after_combine=(restore, *layer.after_combine),
    )


def payload_prices(setting: Setting, payload: PayloadSpec, n_parts: int) -> dict[str, tuple[Duration, ...]]:
    """Times of "compress" and "restore" of one layer: kind -> [part] -> float64[step, device] [s].

    compress  one product of all n tokens with an h x h rotation for every hash function; then a pass that reads the
              rotated values and, for each of k choices, the token, and writes the means.
    restore   a pass that reads every token, for each choice its mean and what came back for it, and writes the sums.
    Sorting by bucket moves 4-byte keys and is left out: 2 h bytes of a token outweigh it some hundred times.
    """
    parts = [_part_prices(part, payload) for part in parts_of(setting, n_parts)]
    return {kind: tuple(prices[kind] for prices in parts) for kind in parts[0]}


def _part_prices(setting: Setting, payload: PayloadSpec) -> dict[str, Duration]:
    model, device = setting.model, setting.cluster.device
    size, k = model.exchange_size, model.top_k
    tokens = np.full(setting.batches.tokens.shape[:2], setting.workload.tokens_per_device)
    rotated_s = payload.hashes * gemm_s(tokens, size, size, model.weight_dtype, device)
    row_bytes = tokens * (size * BYTES_PER_ACTIVATION[model.activation_dtype])
    return {
        "compress": rotated_s + stream_s(row_bytes * (payload.hashes + k + k * payload.rate), device),
        "restore": stream_s(row_bytes * (2 + 2 * k), device),
    }
