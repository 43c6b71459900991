"""Kernels launched one by one by the host: no work is shorter than the launches of its kernels."""

from __future__ import annotations

import numpy as np

from hwmodels.launch import host_floor_s
from scenarios.models import GroupedQueryAttention, ModelCard
from sim.durations import Duration, ExchangeTime
from sim.pricing import Prices
from sim.setting import Setting

# Kernels of one layer in eager mode, counted by us in the modules of vLLM 0.24: norm, query-key-value GEMM, rotary
# embedding, cache write, attention, output GEMM; of MLA norm, two down and two up GEMMs, norms of both latents, rotary
# embedding, cache write, absorption, attention, its reduction, output GEMM. Experts: alignment (3), two GEMMs,
# activation, sum. Compression: rotations in one batch, choice of buckets, sort, means. An engine's own count may
# differ by a few.
GQA_KERNELS, MLA_KERNELS = 6, 13
KERNELS = {
    "descend": 1,
    "ascend": 1,
    "compress": 4,
    "restore": 1,
    "gate": 3,
    "experts": 7,
    "local": 7,
    "shared": 3,
    "mlp": 4,
    "head": 3,
}


def launched_eagerly(prices: Prices, setting: Setting, factor: float = 1.0) -> Prices:
    """Prices with every work at least as long as its launches by the host.

    A host runs ahead of the device, so that long kernels could hide the launches of short ones that follow; taking the
    larger of both for each work is the upper end of that. Launches take `factor` times as long as the card says.
    """
    counts = kernel_counts(setting.model)
    launch = setting.cluster.device.kernels.launch()

    def floored(kind: str, duration: Duration) -> Duration:
        if isinstance(duration, ExchangeTime) or kind not in counts:
            return duration
        return np.maximum(duration, factor * host_floor_s(counts[kind], launch))

    return prices.changed(floored)


def kernel_counts(model: ModelCard) -> dict[str, int]:
    """Kernels that one work of each kind launches."""
    attention = GQA_KERNELS if isinstance(model.attention, GroupedQueryAttention) else MLA_KERNELS
    return {**KERNELS, "attention": attention, "windowed attention": attention}
