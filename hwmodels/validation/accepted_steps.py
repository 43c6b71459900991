"""Errors accepted of layers and steps: as measured, with a margin of a tenth, and where the prediction leaves off."""

from __future__ import annotations

from hwmodels.validation.accepted import Accepted, Limits

ACCEPTED_LAYERS = (
    Accepted(
        suite="layers",
        name="projections to 256 tokens",
        table=".*",
        limits=Limits(median_ape=0.64),
        cause="repeated calls find 17 to 21 MB of weights in the 128 MB L2 cache, a step reads them from memory",
    ),
    Accepted(
        suite="layers",
        name="experts from L2",
        table=".*",
        limits=Limits(median_ape=0.44),
        cause="repeated calls read the weights of 8 experts from the L2 cache, the law from memory, as a step does",
    ),
    Accepted(
        suite="layers",
        name="chunk attention",
        table=".*",
        limits=Limits(median_ape=0.21),
        cause="vLLM 0.19 does not share a long past out over the multiprocessors when a chunk has few tokens",
    ),
    Accepted(
        suite="layers",
        name="masked .* EP from 64",
        table=".*",
        limits=Limits(median_ape=0.65),
        cause="DeepGEMM has less fixed time, and is faster at many tokens an expert, than Triton, which was fitted",
    ),
    Accepted(
        suite="layers",
        name="contiguous .*",
        table=".*",
        limits=Limits(median_ape=0.65),
        cause="about 370 us whatever the work, as kernels launched one by one; above, DeepGEMM is faster than Triton",
    ),
    Accepted(
        suite="layers",
        name="wide .*",
        table=".*",
        limits=Limits(median_ape=0.37),
        cause="an older version takes 11 us more at the fewest tokens, and more for each token; the latter unexplained",
    ),
)
ACCEPTED_STEPS = (
    Accepted(
        suite="steps",
        name="tpot",
        table="h100_sxm gpt-oss-120b trtllm",
        limits=Limits(mean_ape=0.79, median_ape=0.81),
        cause="47 to 60 ms a token whatever the batch, where vLLM takes 7 to 16: host time, which is taken as 0",
    ),
    Accepted(
        suite="steps",
        name="tpot",
        table="h200_sxm deepseek-v3 sglang",
        limits=Limits(mean_ape=0.30, median_ape=0.226),
        cause="not settled: the error grows with context, and speculation and parallel attention are no columns",
    ),
    Accepted(
        suite="steps",
        name="tpot",
        table="h200_sxm deepseek-v3 trtllm",
        limits=Limits(mean_ape=0.336, median_ape=0.262),
        cause="speculative decoding is no column: at the same batch and lengths one version takes 9 ms, another 16",
    ),
    Accepted(
        suite="published",
        name="decode EP(72|144) no overlap",
        table=".*",
        limits=Limits(median_ape=0.48),
        cause="the engines overlap two batches, the schedule nothing",
    ),
)
