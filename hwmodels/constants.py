"""Constants of the kernel laws: one block for each law and data type, as kernel cards hold them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hwmodels.fitted import Fitted
from hwmodels.tiles import RuleName
from scenarios.units import Seconds


class Roofline(Fitted):
    """Of any kernel: T = fixed_s + max(flop / (compute_frac * peak), bytes / (memory_frac * BW))."""

    law: Literal["roofline"]
    fixed_s: Seconds = Field(ge=0, description="of one kernel or fused layer")
    compute_frac: float = Field(gt=0, le=1, description="peak FLOP rate reached")
    memory_frac: float = Field(gt=0, le=1, description="memory bandwidth reached")


class MoeConstants(Fitted):
    """Of the routed experts, `hwmodels.moe.moe_s`."""

    law: Literal["tiles"]
    tiles: RuleName = Field(description="which tiles the engine runs")
    fixed_s: Seconds = Field(ge=0, description="of a layer: launches, sorting, quantisation")
    expert_s: Seconds = Field(ge=0, description="for each expert slot of the device")
    row_s: Seconds = Field(ge=0, description="for each routed token")
    wave_s: Seconds = Field(ge=0, description="prologue and epilogue of a wave of tiles")
    compute_frac: float = Field(gt=0, description="peak FLOP rate of a multiprocessor that a tile reaches")
    load_bytes_per_flop: float | None = Field(
        default=None, gt=0, description="bytes that a multiprocessor loads in the time of one bf16 FLOP; none: no limit"
    )
    weight_frac: float = Field(gt=0, le=1, description="memory bandwidth that weights reach")
    activation_frac: float = Field(gt=0, le=1, description="memory bandwidth that activations reach")
    ragged_factor: float = Field(
        default=1.0, ge=1, description="slowdown of the down GEMM where I is no multiple of 16"
    )
    small_tile_frac: float | None = Field(
        default=None, gt=0, le=1, description="weight_frac of tiles of 64 x 64, which keep few bytes in flight"
    )


class GemmConstants(Fitted):
    """Of dense GEMM, `hwmodels.gemm.product_s`."""

    law: Literal["tiles"]
    fixed_s: Seconds = Field(ge=0, description="of one kernel inside a CUDA graph")
    split_s: Seconds = Field(ge=0, description="second kernel that sums the parts of a split K")
    load_bytes_per_flop: float | None = Field(
        default=None, gt=0, description="bytes that a multiprocessor loads in the time of one bf16 FLOP; none: no limit"
    )
    store_values_per_flop: float | None = Field(
        default=None, gt=0, description="outputs that it stores in that time, twice; none: no limit"
    )
    memory_frac: float = Field(gt=0, le=1, description="memory bandwidth reached")
    compute_frac: float = Field(gt=0, description="peak FLOP rate reached by large products")
    quantise_frac: float | None = Field(
        default=None, gt=0, description="memory bandwidth that quantising the input reaches; none: not part of the time"
    )
