"""Constants of the kernel laws of a CPU whose cores are the device; `hwmodels.cores` holds the laws."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hwmodels.fitted import Fitted
from scenarios.units import Seconds


class CoreProduct(Fitted):
    """Of products with weights that stream from memory: a vector kernel for few rows, a packing one for more."""

    law: Literal["cores"]
    fixed_s: Seconds = Field(ge=0, description="of a product, or of a layer of experts: calls, sorting, sums")
    run_s: Seconds = Field(ge=0, description="start of every contiguous run of weights in memory")
    vector_rows: int = Field(ge=0, description="rows up to which the vector kernel runs")
    vector_frac: float = Field(gt=0, description="peak FLOP rate that the vector kernel reaches")
    vector_extra_rows: float = Field(ge=0, description="rows that take it as long as reading the weights")
    packed_frac: float = Field(gt=0, description="peak FLOP rate that the packing kernel reaches")
    packed_extra_rows: float = Field(ge=0, description="rows that take it as long as reading and packing the weights")


class CoreGemmConstants(CoreProduct):
    """Of dense products, `hwmodels.cores.product_s`."""

    activation_frac: float = Field(gt=0, description="memory bandwidth that inputs and outputs reach")


class CoreMoeConstants(CoreProduct):
    """Of routed experts one after another, `hwmodels.cores.experts_s`."""

    expert_s: Seconds = Field(ge=0, description="of an expert with tokens: the calls of its kernels")


class CoreDecodeConstants(Fitted):
    """Of decode with GQA, `hwmodels.cores.decode_s`."""

    law: Literal["cores"]
    fixed_s: Seconds = Field(ge=0, description="rotary embedding, cache write, calls")
    memory_frac: float = Field(gt=0, description="bandwidth reached by reading the cache")
    compute_frac: float = Field(gt=0, description="peak FLOP rate reached")
    narrow_dim: float = Field(gt=0, description="head_dim up to which a value costs the same; above, in proportion")
    start_s: Seconds = Field(gt=0, description="what a head's slow start costs in the end")
    start_gain: float = Field(ge=0, description="how many times longer the first cached tokens take, less one")


class CorePrefillConstants(Fitted):
    """Of prefill with GQA, `hwmodels.cores.prefill_s`."""

    law: Literal["cores"]
    fixed_s: Seconds = Field(ge=0, description="rotary embedding, cache write, calls")
    memory_frac: float = Field(gt=0, description="bandwidth reached by queries, keys, values and outputs")
    compute_frac: float = Field(gt=0, description="peak FLOP rate reached by products with keys and values")
    score_s: Seconds = Field(ge=0, description="softmax of one score of one head")


class ChoiceConstants(Fitted):
    """Of the router's choice from the scores of all experts: T = fixed_s + tokens (row_s + experts score_s)."""

    fixed_s: Seconds = Field(ge=0, description="launches, whatever the work")
    row_s: Seconds = Field(ge=0, description="for each token")
    score_s: Seconds = Field(ge=0, description="for each score")
