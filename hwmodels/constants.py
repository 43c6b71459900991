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
    tile_compute_frac: float = Field(default=1.0, gt=0, description="peak FLOP rate that one tile reaches; not fitted")
    quantise_frac: float | None = Field(
        default=None, gt=0, description="memory bandwidth that quantising the input reaches; none: not part of the time"
    )


class DecodeConstants(Fitted):
    """Of decode with GQA, `hwmodels.gqa.gqa_decode_s`, by data type of the cache."""

    law: Literal["split-kv"]
    fixed_s: Seconds = Field(ge=0, description="launches, whatever the work")
    unit_s: Seconds = Field(ge=0, description="one KV head of one request on a multiprocessor: prologue and epilogue")
    unit_dim_s: Seconds = Field(ge=0, description="the same, for each 128 values of head_dim")
    memory_frac: float = Field(gt=0, le=1.2, description="datasheet bandwidth reached by reading the cache")
    sm_memory_frac: float = Field(gt=0, description="rate of one multiprocessor alone, over its share of the bandwidth")
    tile_s: Seconds = Field(ge=0, description="one tile of cached tokens, beside its bytes")
    split_s: Seconds = Field(ge=0, description="combining the parts of contexts that were split")
    request_s: Seconds = Field(ge=0, description="scheduling of one request")
    mask_s: Seconds = Field(ge=0, description="masking of a unit behind a window, at head_dim 128")
    pad_s: Seconds = Field(default=0.0, ge=0, description="extra launches at head_dim 192")
    max_splits: int = Field(default=32, ge=1, description="most parts of one context")
    unsplit_tiles: int = Field(default=0, ge=0, description="contexts of up to as many tiles are never split")
    scheduled_requests: int | None = Field(default=None, gt=0, description="batches above this are not scheduled ahead")


class PrefillConstants(Fitted):
    """Of prefill with GQA, `hwmodels.gqa.gqa_prefill_s`, by data type of the cache."""

    law: Literal["tiles"]
    fixed_s: Seconds = Field(ge=0, description="launches, whatever the work")
    item_s: Seconds = Field(ge=0, description="one tile of queries of one KV head: prologue and epilogue")
    memory_frac: float = Field(gt=0, description="bandwidth of all operands, over the datasheet's; reads may be hidden")
    compute_frac: float = Field(gt=0, description="bf16 peak reached; above 1 where the kernel multiplies in fp8")
    softmax_dims: float = Field(ge=0, description="values of head_dim whose product takes as long as the softmax")
    split_s: Seconds = Field(ge=0, description="combining the parts of contexts that were split")
    token_s: Seconds = Field(ge=0, description="writing a token to the cache by a full block of threads")
    mask_s: Seconds = Field(ge=0, description="masking of an item behind a window")
    pad_s: Seconds = Field(default=0.0, ge=0, description="extra launches at head_dim 192")
    unsplit_tiles: int = Field(default=4, ge=0, description="contexts of up to as many tiles are never split")


class MlaDecodeConstants(Fitted):
    """Of absorbed decode with MLA, `hwmodels.mla.mla_decode_s`, by data type of the cache."""

    law: Literal["split-kv"]
    fixed_s: Seconds = Field(ge=0, description="launches, whatever the work")
    unit_s: Seconds = Field(ge=0, description="64 heads of one request on a multiprocessor: prologue and epilogue")
    unit_memory_frac: float = Field(gt=0, description="rate of a multiprocessor on queries and outputs, over its share")
    memory_frac: float = Field(gt=0, le=1.2, description="datasheet bandwidth reached by all reads together")
    sm_memory_frac: float = Field(gt=0, description="rate of one multiprocessor alone, over its share of the bandwidth")
    compute_frac: float = Field(gt=0, description="bf16 peak reached by products with the cache")
    split_s: Seconds = Field(ge=0, description="combining the parts of contexts that were split")
    request_s: Seconds = Field(ge=0, description="scheduling of one request")
    cast_frac: float | None = Field(default=None, gt=0, description="bandwidth of expanding the whole cache to bf16")
    max_splits: int = Field(default=128, ge=1, description="most parts of one context")
    unsplit_tiles: int = Field(default=0, ge=0, description="contexts of up to as many tiles are never split")


class MlaPrefillConstants(PrefillConstants):
    """Of prefill with MLA, `hwmodels.mla.mla_prefill_s`, by data type of the cache.

    Absorbed kernels multiply with the latent, expanded ones with keys and values.
    """

    form: Literal["expanded", "absorbed"] = "expanded"
