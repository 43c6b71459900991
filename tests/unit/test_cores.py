"""Laws of the cores of a CPU against hand numbers, and against sums over experts written out."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hwmodels.attention import attention_decode_s, attention_prefill_s
from hwmodels.cards import DeviceCard
from hwmodels.core_constants import (
    ChoiceConstants,
    CoreDecodeConstants,
    CoreGemmConstants,
    CoreMoeConstants,
    CorePrefillConstants,
)
from hwmodels.devices import Device
from hwmodels.fitted import stretched
from hwmodels.gemm import gate_s, gemm_s, norm_s
from hwmodels.kernels import KernelCard, Kernels
from hwmodels.launch import LaunchConstants
from hwmodels.library import find_device, find_kernels
from hwmodels.moe import ExpertShape, grouped_gemm_moe_s
from scenarios.models import GroupedQueryAttention

US = 1e-6
ORIGIN = {"source": "test", "kind": "assumed"}
# Peak 100 GFLOP/s, 20 GB/s: a vector kernel at 10 GFLOP/s with 1 row extra up to 2 rows, a packing one at 50 with 20.
PRODUCT = ORIGIN | {
    "law": "cores", "fixed_s": "10 us", "run_s": "0.1 us", "vector_rows": 2, "vector_frac": 0.1,
    "vector_extra_rows": 1, "packed_frac": 0.5, "packed_extra_rows": 20,
}  # fmt: skip
GEMM = CoreGemmConstants.model_validate(PRODUCT | {"activation_frac": 0.5})
MOE = CoreMoeConstants.model_validate(PRODUCT | {"expert_s": "3 us"})
DECODE = CoreDecodeConstants.model_validate(
    ORIGIN | {"law": "cores", "fixed_s": "100 us", "memory_frac": 0.5, "compute_frac": 0.2, "narrow_dim": 64,
              "start_s": "2 us", "start_gain": 3}
)  # fmt: skip
PREFILL = CorePrefillConstants.model_validate(
    ORIGIN | {"law": "cores", "fixed_s": "100 us", "memory_frac": 0.5, "compute_frac": 0.8, "score_s": "0.001 us"}
)
LAUNCH = LaunchConstants.model_validate(
    ORIGIN | {"kernel_s": "4 us", "norm_s": "12 us", "small_memory_frac": 0.5, "eager_kernel_s": "2 us",
              "graph_s": "0 s"}
)  # fmt: skip
CHOICE = ChoiceConstants.model_validate(ORIGIN | {"fixed_s": "20 us", "row_s": "0.2 us", "score_s": "0.01 us"})


def sourced(value):
    return {"value": value, "source": "test", "kind": "assumed"}


CORE = Device(
    card=DeviceCard.model_validate(
        {
            "name": "core", "kind": "cpu", "memory_bytes": sourced("16 GiB"), "memory_bytes_per_s": sourced("20 GB/s"),
            "peak_flop_per_s": {"fp32": sourced("100 GFLOP/s")}, "n_sms": sourced(1),
        }
    ),
    kernels=Kernels(
        cards=(
            KernelCard(
                name="test", moe={"fp32": MOE}, gemm={"fp32": GEMM}, decode={"fp32": DECODE},
                prefill={"fp32": PREFILL}, launch=LAUNCH, choice=CHOICE,
            ),
        )
    ),
)  # fmt: skip
SHAPE = ExpertShape(hidden_size=50, intermediate_size=100, gated=True, weight_dtype="fp32")
HEADS = GroupedQueryAttention(n_heads=8, n_kv_heads=4, head_dim=64)


def test_few_rows_take_the_vector_kernel_and_more_the_packing_one():
    # 100 x 200 weights, 40 kFLOP a row; 100 runs of 200 values; activations of 300 values in float32 at 10 GB/s
    rows = np.array([0, 1, 2, 3, 30])
    vector = [10 + (m + 1) * 4 + 10 + m * 0.12 for m in (1, 2)]
    packed = [10 + (m + 20) * 0.8 + 10 + m * 0.12 for m in (3, 30)]
    assert gemm_s(rows, 100, 200, "fp32", CORE) == pytest.approx(np.array([10, *vector, *packed]) * US)


def test_experts_are_the_sum_over_those_with_tokens():
    counts = np.array([[0, 1, 2, 3, 0, 40], [0, 0, 0, 0, 0, 0], [7, 7, 7, 7, 7, 7]])

    def one(tokens):
        # 15,000 weights in 50 + 100 runs: 30 kFLOP a row
        kernel = (tokens + 1) * 3 if tokens <= 2 else (tokens + 20) * 0.6
        return 3 + kernel + 15 if tokens else 0

    expected = [10 + sum(map(one, row)) for row in counts.tolist()]
    assert grouped_gemm_moe_s(counts, SHAPE, CORE) == pytest.approx(np.array(expected) * US)


def test_decode_starts_slowly_for_every_head_of_every_request():
    # a value of the context: 4 bytes x 2 x 4 / 8 heads at 10 GB/s, 4 FLOP at 20 GFLOP/s: 0.6 ns; 64 values a token
    work = 10 * 64 * (4 * 2 * 0.5 / 10e9 + 4 / 20e9)
    head = work + 2 * US * (1 - math.exp(-3 * work / (2 * US)))
    assert attention_decode_s(3, 30, HEADS, 1, "fp32", CORE) == pytest.approx(100 * US + 3 * 8 * head)
    wide = HEADS.model_copy(update={"head_dim": 96})  # half as much again for each value, and as many of them
    wide_s = attention_decode_s(1, 10**7, wide, 1, "fp32", CORE)
    assert wide_s == pytest.approx(100 * US + 8 * (10**7 * 96 * 1.5 * 0.6e-9 + 2 * US))
    long_s = attention_decode_s(1, 10**7, HEADS, 1, "fp32", CORE)
    assert long_s == pytest.approx(100 * US + 8 * (10**7 * 64 * 0.6e-9 + 2 * US))


def test_prefill_meets_the_longest_context_with_every_query():
    # two prompts of 10 tokens: 20 queries of 24 x 64 values at 10 GB/s; 20 x 10 scores of 8 heads
    expected = 100 * US + 20 * 24 * 64 * 4 / 10e9 + 200 * 8 * (4 * 64 / 80e9 + 1e-9)
    assert attention_prefill_s(20, 2 * 55, HEADS, 1, "fp32", CORE) == pytest.approx(expected)
    # a chunk of 5 tokens after 10: contexts of 11 to 15, each with all 15
    chunk = 100 * US + 5 * 24 * 64 * 4 / 10e9 + 5 * 15 * 8 * (4 * 64 / 80e9 + 1e-9)
    assert attention_prefill_s(5, 65, HEADS, 1, "fp32", CORE) == pytest.approx(chunk)


def test_router_and_norm_follow_the_models_data_type():
    product = gemm_s(10, 8, 50, "fp32", CORE)
    assert gate_s(10, 50, 8, 2, "fp32", CORE) == pytest.approx(product + 20 * US + 10 * (0.2 + 0.08) * US)
    assert norm_s(10, 50, "fp32", CORE) == pytest.approx(12 * US + 10 * 4 * 50 * 4 / 10e9)
    assert norm_s(10, 50, "bf16", CORE) == pytest.approx(12 * US + 10 * 4 * 50 * 2 / 10e9)


@pytest.mark.parametrize("block", ["moe", "gemm", "decode", "prefill"])
def test_stretched_constants_stretch_every_time(block):
    card = CORE.kernels.cards[0]
    slow = card.model_copy(update={block: {"fp32": stretched(getattr(card, block)["fp32"], 1.5)}})
    device = replace(CORE, kernels=Kernels(cards=(slow,)))
    times = {
        "moe": lambda on: grouped_gemm_moe_s([1, 5, 0, 9], SHAPE, on),
        "gemm": lambda on: gemm_s([1, 100], 32, 64, "fp32", on),
        "decode": lambda on: attention_decode_s(3, 300, HEADS, 1, "fp32", on),
        "prefill": lambda on: attention_prefill_s(20, 210, HEADS, 1, "fp32", on),
    }[block]
    assert times(device) == pytest.approx(1.5 * times(CORE))


def test_the_shipped_core_is_no_faster_than_its_peak():
    card = find_device("zen4-core")
    device = Device(card=card, kernels=find_kernels(card.kernels))
    rows = np.array([16, 256, 4096])
    flop_s = 2.0 * rows * 512 * 512 / device.peak_flop_per_s("fp32")
    assert (gemm_s(rows, 512, 512, "fp32", device) > 0.99 * flop_s).all()
