"""Laws of a host's cores against hand numbers."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hwmodels.host import attention_s, expert_s, experts_s, find_cpu, gemm_s
from hwmodels.library import find_cpu_kernels, list_cards
from hwmodels.moe import ExpertShape
from scenarios.errors import HardwareError
from tests.hosts import round_host

# 3 x 1000 x 1000 weights: 6 MB in bf16, 3 MB in int8, 6 MFLOP a token.
SHAPE = ExpertShape(hidden_size=1000, intermediate_size=1000, gated=True, weight_dtype="bf16")
LINEAR = {"host_frac": 1e6}  # a ceiling so far away that rates stay linear to 1e-20


def test_rate_is_linear_first_and_saturates() -> None:
    # fp32 peak 10 TFLOP/s on 100 cores, a core reaches 0.5 of its 0.1 TFLOP/s; the ceiling is 0.4 of 10 TFLOP/s.
    assert round_host(vector=LINEAR).vector_flop_per_s == pytest.approx(5e12)
    # n r = 5, P = 4: 5 / (1 + (5/4)^4)^(1/4) = 5 / 3.44140625^0.25 = 3.671014
    assert round_host(vector={"host_frac": 0.4}).vector_flop_per_s == pytest.approx(3.671014e12, rel=1e-6)
    assert round_host(n_threads=2, vector={"host_frac": 0.4}).vector_flop_per_s == pytest.approx(0.1e12, rel=1e-6)


def test_an_expert_streams_at_few_tokens_and_computes_at_many() -> None:
    host = round_host(vector=LINEAR, matrix=None)
    # Streaming: 6 MB over 0.5 x 400 GB/s = 30 us. Vector: (c + 1) x 6 MFLOP / 5 TFLOP/s = (c + 1) x 1.2 us.
    assert expert_s([0, 1, 24, 25, 49], SHAPE, host) == pytest.approx([0, 30e-6, 30e-6, 31.2e-6, 60e-6])


def test_many_tokens_take_the_matrix_kernel() -> None:
    host = round_host(vector=LINEAR, matrix=LINEAR | {"core_frac": 1.0, "expert_tokens": 0.0}, vector_tokens=40)
    # bf16 peak 40 TFLOP/s: 100 tokens are 600 MFLOP / 40 TFLOP/s = 15 us, less than streaming; 1000 are 150 us.
    assert expert_s([40, 41, 100, 1000], SHAPE, host) == pytest.approx([49.2e-6, 30e-6, 30e-6, 150e-6])
    # Quantised to int8 the card's 80 TOP/s apply, and half the bytes: 15 us or 6 MOP / 80 TOP/s = 75 ns a token.
    assert expert_s([100, 1000], replace(SHAPE, weight_dtype="int8"), host) == pytest.approx([15e-6, 75e-6])
    assert host.matrix_flop_per_s("int4") == pytest.approx(80e12)
    assert host.matrix_flop_per_s("mxfp4") == pytest.approx(40e12)
    assert host.matrix_flop_per_s("fp32") is None


def test_a_layer_pays_for_its_call_once() -> None:
    host = round_host(vector=LINEAR, matrix=None)
    # 10 us and two experts of 30 us; nothing where no expert has tokens.
    assert experts_s([[1, 0, 3], [0, 0, 0]], SHAPE, host) == pytest.approx([70e-6, 0.0])


def test_a_share_of_the_dram_slows_streaming_only() -> None:
    host = round_host(vector=LINEAR, matrix=None)
    # 6 MB over 100 GB/s = 60 us; 99 tokens compute for 120 us either way.
    assert expert_s([1, 99], SHAPE, host, dram_bytes_per_s=100e9) == pytest.approx([60e-6, 120e-6])
    assert attention_s(6e6, 0, host, dram_bytes_per_s=100e9) == pytest.approx(70e-6)


def test_gemm_and_attention_by_hand() -> None:
    host = round_host(vector=LINEAR, matrix=None)
    # 10 us, and the larger of 2 MB / 200 GB/s = 10 us and (m + 1) x 2 MFLOP / 5 TFLOP/s: 400 ns a row.
    assert gemm_s([1, 99], (1000, 1000), "bf16", host) == pytest.approx([20e-6, 50e-6])
    # 20 MB / 200 GB/s = 100 us; 1 GFLOP / 5 TFLOP/s = 200 us.
    assert attention_s([20e6, 20e6], [0, 1e9], host) == pytest.approx([110e-6, 210e-6])


def test_bandwidth_by_threads_and_nodes() -> None:
    # Two nodes of 50 cores, 200 GB/s each, half of it reached; 7 GB/s a thread.
    expected = {1: 7e9, 14: 98e9, 15: 100e9, 50: 100e9, 51: 200e9, 100: 200e9}
    assert {n: round_host(n_threads=n).dram_bytes_per_s for n in expected} == pytest.approx(expected)


def test_remote_memory_is_slower() -> None:
    # All bytes remote: 0.5 x 50 GB/s a node. Half of them: 0.5 / (0.5 / 200 + 0.5 / 50) = 40 GB/s a node.
    assert round_host(local_frac=0.0).dram_bytes_per_s == pytest.approx(50e9)
    assert round_host(local_frac=0.5).dram_bytes_per_s == pytest.approx(80e9)


def test_splitting_experts_over_sockets_pays_as_ktransformers_says() -> None:
    # KTransformers (SOSP 2025): decode gains 1.63 from splitting each expert over both sockets. Interleaved pages give
    # 2 x 220 / (2 x 159) = 1.38, all bytes on the other socket 220 / 125 = 1.76; its baseline lies between.
    split = find_cpu("xeon-8452y-2s").dram_bytes_per_s
    gains = [split / find_cpu("xeon-8452y-2s", local_frac=frac).dram_bytes_per_s for frac in (0.5, 0.0)]
    assert gains == pytest.approx([1.38, 1.76], abs=1e-9)


def test_attention_of_moe_lightning() -> None:
    # MoE-Lightning (arXiv 2411.11217), kernel latencies on the L4 host: 32 requests, one Mixtral layer (8 KV heads of
    # 128, fp16: 4096 bytes a token), contexts 512, 1024 and 2048 take 1.73, 3.0 and 5.94 ms.
    host, context = find_cpu("xeon-gcp-24c"), np.array([512, 1024, 2048])
    flop = 32 * context * (4 * 32 * 128)
    times = attention_s(32 * context * 4096, flop, host)
    assert times == pytest.approx([1.73e-3, 3.0e-3, 5.94e-3], rel=0.12)


def test_decode_of_deepseek_v3_gives_the_published_busy_time() -> None:
    # KTransformers (SOSP 2025): 5.87 tokens/s in bf16 with CPUs busy 74 % of the time: 126 ms a token; the constant
    # comes from this row. 58 layers x 8 experts x 3 x 7168 x 2048 weights x 2 bytes = 40.9 GB.
    expert = ExpertShape(hidden_size=7168, intermediate_size=2048, gated=True, weight_dtype="bf16")
    layer_s = float(experts_s([1] * 8, expert, find_cpu("xeon-8452y-2s")))
    assert 58 * layer_s == pytest.approx(0.74 / 5.87, rel=0.015)


def test_amx_reaches_the_published_rate_at_many_tokens() -> None:
    expert = ExpertShape(hidden_size=7168, intermediate_size=2048, gated=True, weight_dtype="bf16")
    host = find_cpu("xeon-8452y-2s")
    flop_per_s = 4096 * 2 * 3 * 7168 * 2048 / float(expert_s(4096, expert, host))
    # 2 x 21.3 TFLOPS; both fractions are 2^(1/4), so that saturation takes just that from the rate of single cores.
    assert flop_per_s == pytest.approx(42.6e12, rel=2e-3)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8", "int4", "fp8_block"])
def test_every_host_card_prices_experts(dtype: str) -> None:
    for card in list_cards().hosts:
        times = experts_s(np.eye(4, dtype=int) * 3, replace(SHAPE, weight_dtype=dtype), find_cpu(card.name))
        assert (times > 0).all(), card.name


def test_hosts_without_constants_of_their_own_say_so() -> None:
    host = find_cpu("epyc-7742-2s")
    assert host.card.kernels == "cpu-assumed"
    assert host.constants.kind == "assumed"
    assert host.constants.low_high == (0.5, 2.0)


def test_saturation_of_the_epyc() -> None:
    rates = [find_cpu("epyc-9r14-1s", n).vector_flop_per_s for n in (12, 24, 48, 96)]
    gains = [more / fewer for fewer, more in pairwise(rates)]
    assert gains[0] == pytest.approx(2, rel=0.02)
    assert gains[2] < 1.5


def test_misuse_is_an_error() -> None:
    with pytest.raises(HardwareError, match=r"97 threads on epyc-9r14-1s: choose 1 to 96"):
        find_cpu("epyc-9r14-1s", 97)
    with pytest.raises(HardwareError, match=r"local_frac 1\.5 is a share"):
        find_cpu("epyc-9r14-1s", local_frac=1.5)
    with pytest.raises(HardwareError, match=r"xeon-8480c-2s states no remote_bytes_per_s"):
        find_cpu("xeon-8480c-2s", local_frac=0.5)
    with pytest.raises(HardwareError, match=r"0 threads on i9-9900x: choose 1 to 10"):
        find_cpu("i9-9900x", 0)
    with pytest.raises(HardwareError, match=r"no CPU kernel card 'cpu'"):
        find_cpu_kernels("cpu")


def test_one_socket_has_no_remote_memory() -> None:
    assert find_cpu("i9-9900x", local_frac=0.3).dram_bytes_per_s == find_cpu("i9-9900x").dram_bytes_per_s
