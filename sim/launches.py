"""Kernels launched one by one by the host: no work is shorter than the launches of its kernels."""

from __future__ import annotations

import numpy as np

from hwmodels.launch import host_floor_s
from scenarios.models import GroupedQueryAttention, ModelCard
from scenarios.schedule_specs import ScheduleSpec
from sim.durations import Duration, ExchangeTime
from sim.policies import TILED
from sim.pricing import Prices
from sim.setting import Setting
from sim.tile_pricing import works_of_experts
from sim.training import plain_kind

# Kernels of one layer in eager mode, counted by us in the modules of vLLM 0.24: norm, query-key-value GEMM, rotary
# embedding, cache write, attention, output GEMM; of MLA norm, two down and two up GEMMs, norms of both latents, rotary
# embedding, cache write, absorption, attention, its reduction, output GEMM. Experts: alignment (3), two GEMMs,
# activation, sum. Compression: rotations in one batch, choice of buckets, sort, means. An engine's own count may
# differ by a few. Norm and GEMMs (and rotary embedding and absorption of MLA) come before the core of attention.
GQA_KERNELS, MLA_KERNELS = 6, 13
GQA_PROJECTIONS, MLA_PROJECTIONS = 2, 8
KERNELS = {
    "descend": 1,
    "ascend": 1,
    "compress": 4,
    "restore": 1,
    "encode": 2,
    "decode": 1,
    "gate": 3,
    "experts": 7,
    "local": 7,
    "shared": 3,
    "mlp": 4,
    "head": 3,
}
# One kernel for a layer (FlashMoE, arXiv 2506.04667, table 1); with tiles gate, alignment (3) and two fused kernels.
FUSED_KERNELS = {"persistent": 1, "tiles": 8}

BACKWARD_KERNELS = 2  # a product has two gradients; other kernels have one, and are taken for two


def launched_eagerly(prices: Prices, setting: Setting, schedule: ScheduleSpec, factor: float = 1.0) -> Prices:
    """Prices with every work at least as long as its launches by the host.

    A host runs ahead of the device, so that long kernels could hide the launches of short ones that follow; taking the
    larger of both for each work is the upper end of that. Launches take `factor` times as long as the card says.
    """
    counts = kernel_counts(setting.model, schedule)
    launch = setting.cluster.device.kernels.launch()

    def floored(kind: str, duration: Duration) -> Duration:
        own = plain_kind(kind)
        if isinstance(duration, ExchangeTime) or own not in counts:
            return duration
        kernels = counts[own] * (BACKWARD_KERNELS if own != kind else 1)
        return np.maximum(duration, factor * host_floor_s(kernels, launch))

    return prices.changed(floored)


ENGINE_WAITS = ("attention", "windowed attention", "projections")
"""Kinds of works that begin a layer, of which a schedule issues one."""


def slowed_by_engine(prices: Prices, schedule: ScheduleSpec) -> Prices:
    """Prices in which every layer begins with `schedule.layer_overhead`, during which copies and exchanges go on."""
    if not schedule.layer_overhead:
        return prices

    def later(kind: str, duration: Duration) -> Duration:
        if isinstance(duration, ExchangeTime) or kind not in ENGINE_WAITS:
            return duration
        return np.asarray(duration + schedule.layer_overhead)

    return prices.changed(later)


def kernel_counts(model: ModelCard, schedule: ScheduleSpec) -> dict[str, float]:
    """Kernels that one work of each kind launches; tiles of a fused kernel share its launches."""
    grouped = isinstance(model.attention, GroupedQueryAttention)
    attention = GQA_KERNELS if grouped else MLA_KERNELS
    before = GQA_PROJECTIONS if grouped else MLA_PROJECTIONS
    of_attention = {"attention": attention, "core": attention - before}
    windowed = {f"windowed {kind}": count for kind, count in of_attention.items()}
    return {**KERNELS, **of_attention, **windowed, "projections": before, **_of_moe(schedule)}


def _of_moe(schedule: ScheduleSpec) -> dict[str, float]:
    """Kernels of the gate and of one work of the experts."""
    total = schedule.kernels_per_layer or FUSED_KERNELS.get(schedule.overlap, KERNELS["gate"] + KERNELS["experts"])
    gate = min(KERNELS["gate"], total - 1)
    works = 1 if schedule.overlap not in TILED else works_of_experts(TILED[schedule.overlap], schedule.tiles)
    return {"gate": gate, "experts": (total - gate) / works}
