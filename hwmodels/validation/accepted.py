"""Errors accepted where a goal is missed: as measured on aiconfigurator-core 0.12.0, with a margin, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest errors, fractions of the measured time; none: not limited."""

    mean_ape: float | None = None
    median_ape: float | None = None
    p90_ape: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Limits in place of a goal, for the scores of a suite whose name and table match these patterns."""

    suite: str
    table: str
    name: str
    limits: Limits
    cause: str


TUNED_TILES = "shapes with tile sizes that the engine ships for them, which the table does not tell"
TRTLLM_MLA = "times fall from 1 to 63 cached tokens, single rows are far off, and the fold of 128 heads extrapolates"
FA3_DIMS = "the speed of FlashAttention-3 does not follow the head size smoothly, least with an fp8 cache"
FA2 = "FlashAttention 2 packs heads and splits contexts by other rules than the law, which is that of version 3"
BLACKWELL = "kernels of another generation than the law describes; which of them runs depends on the shape"
FLASHINFER = "single tokens, and calls of 1,536 to 8,192 tokens, between the sizes of its tiles"
MANY_TOKENS = "calls of more than 1,536 tokens, twice as far off as smaller ones; clocks under load are not known"
FEW_ROWS = "only skewed rows, whose draws are unknown, and four models: constants move with the fold"
REMOTE_ROWS = "SGLang's kernels do some work for rows of remote experts; how much, the table does not tell"
REPLAYED = "the draws of the skewed rows are unknown; rebuilt ones scatter by 1 % in the median, 4 % in the tail"
QUANTISED_GEMM = "host and quantisation time inside quantised GEMM differ between engines and devices"
PACKED = "kernels for packed weights change tiles at about 10 tokens an expert, which takes up to 40 % at one step"
FEW_POINTS = "so few rows a shape that steps of tiles and waves fall between them"
HOST_TIME = "times of the host are inside and scatter from row to row"
OTHER_KERNEL = "the device runs another kernel than the one whose constants are carried over"

ALLOCATION = "results of 128 KiB and more are mapped anew in every call, and their pages take as long as the work"
ONE_SHAPE = "two shapes, each predicted by the other alone; passes of one point differ by 12 % in the mean"
SMALL_COPIES = "copies of 16 and 32 KiB stay in caches; passes of one point differ by 13 % in the mean"

ACCEPTED = (
    Accepted(suite="measured", table="zen4-core small", name="router's choice",
             limits=Limits(mean_ape=0.14), cause=ALLOCATION),
    Accepted(suite="measured", table="zen4-core host", name="experts on a host core",
             limits=Limits(mean_ape=0.12), cause=ONE_SHAPE),
    Accepted(suite="measured", table="zen4-core copies", name="copies to-device pageable",
             limits=Limits(mean_ape=0.12), cause=SMALL_COPIES),
    Accepted(suite="kernels", table="generation mla trtllm", name="mla_decode .*",
             limits=Limits(mean_ape=0.097, median_ape=0.071), cause=TRTLLM_MLA),
    Accepted(suite="kernels", table="h[12]00_sxm moe vllm", name="moe bf16 balanced",
             limits=Limits(mean_ape=0.073, median_ape=0.044, p90_ape=0.16), cause=TUNED_TILES),
    Accepted(suite="kernels", table="moe sglang", name="moe bf16 balanced",
             limits=Limits(mean_ape=0.10, median_ape=0.061), cause=TUNED_TILES),
    Accepted(suite="kernels", table="moe sglang", name="moe bf16 EP 2-32 balanced",
             limits=Limits(mean_ape=0.18), cause=REMOTE_ROWS),
    Accepted(suite="kernels", table="h100_sxm moe trtllm", name="moe bf16 balanced",
             limits=Limits(mean_ape=0.06, median_ape=0.030, p90_ape=0.14), cause=MANY_TOKENS),
    Accepted(suite="kernels", table="h[12]00_sxm (context|generation) attention", name="(prefill|decode) .*",
             limits=Limits(mean_ape=0.095, median_ape=0.074), cause=FA3_DIMS),
    Accepted(suite="kernels", table="b200_sxm moe", name="moe (bf16|fp8|fp8_block) balanced",
             limits=Limits(mean_ape=0.095, median_ape=0.062, p90_ape=0.24), cause=BLACKWELL),
    Accepted(suite="kernels", table="b200_sxm moe", name="moe fp8_block EP 2-32 balanced",
             limits=Limits(mean_ape=0.19), cause=BLACKWELL),
    Accepted(suite="kernels", table="b200_sxm .* attention", name="(prefill|decode) .*",
             limits=Limits(mean_ape=0.163, median_ape=0.128), cause=BLACKWELL),
    Accepted(suite="kernels", table="rtx_pro_6000_server moe", name="moe (bf16|fp8) balanced",
             limits=Limits(mean_ape=0.063, median_ape=0.035, p90_ape=0.15), cause=FLASHINFER),
    Accepted(suite="kernels", table="rtx_pro_6000_server .* attention", name="(prefill|decode) .*",
             limits=Limits(mean_ape=0.354, median_ape=0.244), cause=FA2),
    Accepted(suite="kernels", table="a100_sxm .* attention", name="(prefill|decode) .*",
             limits=Limits(mean_ape=0.183, median_ape=0.162), cause=FA2),
    Accepted(suite="kernels", table="a100_sxm gemm", name="gemm bf16",
             limits=Limits(mean_ape=0.095), cause="not found; half of the rows are within 6 %"),
    Accepted(suite="skew", table="h[12]00_sxm moe trtllm", name="moe fp8_block skewed",
             limits=Limits(median_ape=0.046, p90_ape=0.20), cause=REPLAYED),
    Accepted(suite="skew", table="h[12]00_sxm moe vllm", name="moe bf16 skewed",
             limits=Limits(median_ape=0.048, p90_ape=0.20), cause=TUNED_TILES),
    Accepted(suite="skew", table="moe sglang", name="moe bf16 skewed",
             limits=Limits(median_ape=0.063, p90_ape=0.20), cause=TUNED_TILES),
    Accepted(suite="skew", table="b200_sxm moe", name="moe .* skewed",
             limits=Limits(median_ape=0.075, p90_ape=0.25), cause=BLACKWELL),
    Accepted(suite="skew", table="a100_sxm moe", name="moe bf16 skewed",
             limits=Limits(median_ape=0.14, p90_ape=0.48), cause=FEW_ROWS),
    Accepted(suite="transfer", table="gemm", name="gemm (fp8|fp8_block)",
             limits=Limits(median_ape=0.25), cause=QUANTISED_GEMM),
    Accepted(suite="transfer", table="(a100|b200|rtx).*", name=".*",
             limits=Limits(median_ape=0.57), cause=OTHER_KERNEL),
    Accepted(suite="interpolation", table="moe", name="moe (int4|mxfp4) interpolated",
             limits=Limits(median_ape=0.040), cause=PACKED),
    Accepted(suite="interpolation", table="a100_sxm moe", name="moe bf16 interpolated",
             limits=Limits(median_ape=0.029), cause=FEW_ROWS),
    Accepted(suite="interpolation", table="a100_sxm moe", name="moe bf16 other slots",
             limits=Limits(median_ape=0.059), cause=FEW_ROWS),
    Accepted(suite="interpolation", table="h[12]00_sxm gemm", name="gemm fp8_block interpolated",
             limits=Limits(median_ape=0.045), cause=HOST_TIME),
    Accepted(suite="interpolation", table="b200_sxm gemm", name="gemm (bf16|fp8) interpolated",
             limits=Limits(median_ape=0.049), cause=BLACKWELL),
    Accepted(suite="interpolation", table="a100_sxm gemm", name="gemm bf16 interpolated",
             limits=Limits(median_ape=0.045), cause=FEW_POINTS),
    Accepted(suite="interpolation", table="rtx_pro_6000_server generation", name="decode bf16 interpolated",
             limits=Limits(median_ape=0.056), cause=FA2),
    Accepted(suite="links", table="rtx_pro_6000_server nccl", name="nccl all", limits=Limits(mean_ape=0.064),
             cause="times of 8 GPUs fall as messages grow past a size, which no minimum of rising lines follows"),
    Accepted(suite="links", table="b200_sxm nccl", name="nccl all", limits=Limits(mean_ape=0.057),
             cause="all-gather of 8 GPUs has more steps between 64 KB and 4 MB than three protocols"),
    Accepted(suite="links", table="a100_sxm nccl", name="nccl all", limits=Limits(mean_ape=0.057),
             cause="all-gather and all-to-all have more steps than three protocols, most with 4 GPUs"),
    Accepted(suite="links", table="deepep ll", name="deepep-low-latency all( by size)?", limits=Limits(mean_ape=0.051),
             cause="the law was shaped on ten of these sixteen shapes; the others are about twice as far off"),
    Accepted(suite="links", table="gb200 trtllm alltoall", name="nvl72-two-sided all", limits=Limits(mean_ape=0.049),
             cause="the law was shaped on EP 2 to 32 without 16; EP 16 and 64 are further off"),
    Accepted(suite="links", table="gb200 trtllm alltoall", name="nvl72-one-sided all", limits=Limits(mean_ape=0.050),
             cause="a combine among four GPUs of few tokens is 10 to 20 % faster than the law allows"),
)  # fmt: skip
"""The first that matches counts."""
