"""How far generation may be off: the 80 % bands of the laws carried through its passes, as `sim.bands` does for steps.

Here each family of laws is stretched as a whole by the ends of its band, fixed times included.
"""

from __future__ import annotations

import numpy as np

from scenarios.models import GroupedQueryAttention
from scenarios.stream_specs import HOST_ATTENTION
from sim.bands import StepBand, experts_ends
from sim.offload.tiers import host_bands
from sim.session import Plan
from sim.setting import Setting
from sim.stream.generation import Generation

DENSE = ("projections", "output", "gate", "shared", "mlp", "head")
CARRIED = ("page", "dense page", "attention page", "queries", "results", "cache", "store")
Ends = tuple[float, float]


def generation_band(generation: Generation, setting: Setting, plan: Plan) -> StepBand:
    """The band of the time of all passes."""
    families = families_of(setting, plan)
    variants = [dict.fromkeys(kinds, factor) for kinds, band in families.values() for factor in band]
    prefill_s, passes_s = generation.times_s([{}, *variants])
    total_s = prefill_s + passes_s.sum(axis=-1)
    ratios = (total_s[1:] / total_s[0]).reshape(-1, 2).tolist()
    ends = {name: (min(low, 1.0), max(high, 1.0)) for name, (low, high) in zip(families, ratios, strict=True)}
    below = np.sqrt(sum((1 - low) ** 2 for low, _ in ends.values()))
    above = np.sqrt(sum((high - 1) ** 2 for _, high in ends.values()))
    return StepBand(low=float(1 - min(below, 1.0)), high=float(1 + above), families=ends)


def families_of(setting: Setting, plan: Plan) -> dict[str, tuple[tuple[str, ...], Ends]]:
    """Family -> (kinds of work, ends of the band of measured over predicted time)."""
    model, kernels = setting.model, setting.cluster.device.kernels
    kv, latent = model.kv_dtype, not isinstance(model.attention, GroupedQueryAttention)
    prefill = (kernels.mla_prefill(kv) if latent else kernels.prefill(kv)).low_high
    decode = (kernels.mla_decode(kv) if latent else kernels.decode(kv)).low_high
    beside = host_bands(setting)
    core = ("core", "windowed core")
    on_host = plan.schedule.overlap in HOST_ATTENTION
    return {
        "experts": (("experts",), experts_ends(setting)),
        "dense": (DENSE, kernels.gemm(model.weight_dtype).low_high),
        "prefill attention": (("prompt", "windowed prompt"), prefill),
        "decode attention": (core, beside["hosted"] if on_host else decode),
        "copies": (CARRIED, beside["load"]),
    }
