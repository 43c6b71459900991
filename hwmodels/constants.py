"""Constants of the analytic kernel laws, each with its source; `hwmodels.gemm`, `attention` and `moe` hold the laws."""

from __future__ import annotations

from pydantic import Field

from scenarios.sources import Sourced, Spec
from scenarios.units import Seconds


class KernelConstants(Spec):
    """Fractions are of the device's datasheet peak (0-1); times are per kernel launch or per wave."""

    gemm_compute_frac: Sourced[float] = Field(description="peak FLOP rate reached by large dense GEMM")
    memory_frac: Sourced[float] = Field(description="peak memory bandwidth reached by streaming reads")
    activation_memory_frac: Sourced[float] = Field(description="the same for activations: MoE rows, prefill queries")
    kernel_s: Sourced[Seconds] = Field(description="fixed time of one kernel inside a CUDA graph")
    moe_fixed_s: Sourced[Seconds] = Field(description="fixed time of a fused MoE layer: permute, quantise, launches")
    wave_s: Sourced[Seconds] = Field(description="fixed time of one wave of tiles: prologue and epilogue")
    tile_frac_16: Sourced[float] = Field(description="peak FLOP rate of one SM on tiles of 16 rows")
    tile_frac_64: Sourced[float] = Field(description="peak FLOP rate of one SM on tiles of 64 rows")
    tile_frac_128: Sourced[float] = Field(description="peak FLOP rate of one SM on tiles of 128 rows")
    attention_compute_frac: Sourced[float] = Field(description="peak FLOP rate reached by prefill attention")
    attention_fixed_s: Sourced[Seconds] = Field(description="fixed time of one attention kernel")
    attention_wave_s: Sourced[Seconds] = Field(description="time of one wave of split-KV attention, beside its bytes")
