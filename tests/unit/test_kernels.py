"""Laws of routed experts and dense layers: hand numbers on `round_gpu` (times in microseconds), limits on the H200."""

from dataclasses import replace

import numpy as np
import pytest

from hwmodels.devices import computed_bytes
from hwmodels.gemm import gate_s, gemm_s, head_s, mlp_s, norm_s, product_s, stream_s
from hwmodels.moe import ExpertShape, activation_bytes, expert_shape, expert_work, grouped_gemm_moe_s, moe_s
from hwmodels.tiles import FASTEST, TILE_RULES
from scenarios.errors import HardwareError, ScenarioError
from scenarios.models import LatentAttention, ModelCard
from tests.devices import h200, ideal_gpu, roofline, round_gpu

GPU = round_gpu()
# Without loads, so that a tile takes its products alone: 2 BM BN K at 5 TFLOP/s.
FREE = round_gpu(moe={"load_bytes_per_flop": None})
# DeepSeek-V3, arXiv 2412.19437, section 4.2.
MLA = LatentAttention(
    kind="mla",
    n_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)


def shape(hidden: int = 1024, intermediate: int = 512, gated: bool = True, weight_dtype: str = "bf16") -> ExpertShape:
    return ExpertShape(hidden_size=hidden, intermediate_size=intermediate, gated=gated, weight_dtype=weight_dtype)


def us(time_s: object) -> object:
    return pytest.approx(np.asarray(time_s) * 1e-6, rel=1e-12)


def pnorm2(first: float, second: float) -> float:
    return float((first**2 + second**2) ** 0.5)


def pnorm4(*times: float) -> float:
    return float(sum(time**4 for time in times) ** 0.25)


class TestRoutedExperts:
    def test_tiles_of_128_rows(self) -> None:
        # Rows 2 + 8 tiles, columns 8: 80 tiles, one wave. K 1024: 2 * 128 * 128 * 1024 / 5 TFLOP/s = 6.7108864, + 1;
        # 64 rows: 19 * 8 tiles, two waves of 3.3554432 + 1; 16 rows: 73 * 8 tiles, six waves of 0.8388608 + 1.
        # So up: 7.7108864 (8.71, 11.03) and down, K 512: 4.3554432 (5.36, 8.52).
        # Weights: 2 experts * 1024 * 1024 * 2 bytes at 2 TB/s = 2.097152, and half of it for the down GEMM.
        gemms = pnorm2(7.7108864, 2.097152) + pnorm2(4.3554432, 1.048576)
        # 3 slots * 0.5, 1160 tokens * 0.01, and 1160 * 2 bytes * (3 * 1024 + 3 * 512) values at 1 TB/s.
        rest = 20 + 1.5 + 11.6 + 10.69056
        assert grouped_gemm_moe_s([160, 0, 1000], shape(), FREE) == us(rest + gemms)

    def test_small_counts_use_tiles_of_16_rows(self) -> None:
        # 64 experts of one token: 64 * 8 tiles, six waves of 0.8388608 + 1, and of 0.4194304 + 1.
        gemms = pnorm2(6 * 1.8388608, 67.108864) + pnorm2(6 * 1.4194304, 33.554432)
        moved = 64 * 2 * 4608 / 1e6
        assert grouped_gemm_moe_s([1] * 64, shape(), FREE) == us(20 + 32 + 0.64 + gemms + moved)

    def test_one_tile_more_than_there_are_multiprocessors_is_another_wave(self) -> None:
        # Tiles of 64 x 128 alone. 640 tokens of an expert without gate: 10 rows of tiles; 10 columns of 1280 fill 100
        # multiprocessors, 11 of 1344 do not fit. The down GEMM has 80 tiles of K 1280 or 1344 = 21 * 64.
        gpu = round_gpu(moe={"load_bytes_per_flop": None, "tiles": "sglang-fp8-block"})
        for inter, waves in ((1280, 1), (1344, 2)):
            up, down = waves * (3.3554432 + 1), 1 + 2 * 64 * 128 * inter / 5e6
            gemms = sum(pnorm2(time, 1024 * inter * 2 / 2e6) for time in (up, down))
            moved = 640 * 2 * (3 * 1024 + 2 * inter) / 1e6
            expected = us(20 + 0.5 + 6.4 + gemms + moved)
            assert grouped_gemm_moe_s([640], shape(1024, inter, gated=False), gpu) == expected

    def test_a_tile_takes_its_products_or_its_loads(self) -> None:
        # 3 tokens on one expert, one tile of 16 rows and 128 columns: 3 rows of 2 bytes and 128 columns of 2 bytes are
        # loaded, for every one of 1024 values of K, at 0.02 * 10 TFLOP/s = 200 GB/s.
        up, down = (pnorm4(2 * 16 * 128 * k / 5e6, (3 * 2 + 128 * 2) * k / 200e3) for k in (1024, 512))
        gemms = pnorm2(up + 1, 1.048576) + pnorm2(down + 1, 0.524288)
        moved = 3 * 2 * 4608 / 1e6
        assert grouped_gemm_moe_s([3], shape(), GPU) == us(20 + 0.5 + 0.03 + gemms + moved)

    def test_packed_weights_load_their_bytes_and_expanded_activations(self) -> None:
        # fp8: rows and columns of one byte, products at twice the rate. mxfp4: columns of 0.53125 bytes (4 bits and a
        # scale of 8 for 32 values), rows of two bytes and products as in bf16.
        rest = 20 + 0.5 + 0.03 + 3 * 2 * 4608 / 1e6
        for dtype, width, weight, rate in (("fp8", 1, 1, 10e6), ("mxfp4", 2, 0.53125, 5e6)):
            gemms = 0.0
            for n, k in ((1024, 1024), (1024, 512)):
                tile = pnorm4(2 * 16 * 128 * k / rate, (3 * width + 128 * weight) * k / 200e3)
                gemms += pnorm2(tile + 1, n * k * weight / 2e6)
            assert computed_bytes(dtype) == width
            assert grouped_gemm_moe_s([3], shape(weight_dtype=dtype), GPU) == us(rest + gemms)

    def test_k_is_rounded_up_to_64_and_ragged_sizes_slow_the_down_gemm(self) -> None:
        # I 520 = 8 * 65 computes like 576 but streams 520; it is no multiple of 16.
        up_waves = 1  # 2 * 520 columns: 9 tiles
        for factor, inter in ((1.0, 520), (3.0, 520), (3.0, 528)):
            gpu = round_gpu(moe={"load_bytes_per_flop": None, "ragged_factor": factor})
            up = pnorm2(up_waves * (0.8388608 + 1), 2 * inter * 1024 * 2 / 2e6)
            down = pnorm2(2 * 16 * 128 * 576 / 5e6 + 1, inter * 1024 * 2 / 2e6) * (factor if inter == 520 else 1)
            moved = 2 * (3 * 1024 + 3 * inter) / 1e6
            assert grouped_gemm_moe_s([1], shape(1024, inter), gpu) == us(20.5 + 0.01 + up + down + moved)

    def test_the_combine_reads_and_writes_each_token_of_the_device(self) -> None:
        bare_s = grouped_gemm_moe_s([160, 0, 1000], shape(), GPU)
        # 580 tokens * 2 bytes * 1024 values at 1 TB/s; the routed rows are read in any case.
        assert grouped_gemm_moe_s([160, 0, 1000], shape(), GPU, 580) - bare_s == pytest.approx(1.18784e-6)

    def test_experts_without_gate_have_two_matrices(self) -> None:
        plain = shape(gated=False)
        assert plain.gemm_sizes == ((512, 1024), (1024, 512))
        assert plain.weight_bytes == 2 * 2 * 512 * 1024
        # permute: read and write h; activation: read and write I; sum: read h, and write h for own tokens.
        assert activation_bytes(1, plain) == 2 * (3 * 1024 + 2 * 512)
        assert activation_bytes([3, 5], shape(), [1, 0]).tolist() == [2 * (3 * 4608 + 1024), 2 * 5 * 4608]
        # Up GEMM, 512 columns: 19 * 4 tiles of 64 rows fit one wave; down 19 * 8 need two, together less than tiles of
        # 128 rows (7.7108864 and 4.3554432). Both stream 2 MiB.
        gemms = pnorm2(4.3554432, 1.048576) + pnorm2(2 * 2.6777216, 1.048576)
        rest = 20 + 1.5 + 11.6 + 1160 * 8192 / 1e6
        assert grouped_gemm_moe_s([160, 0, 1000], plain, FREE) == us(rest + gemms)

    def test_idle_device_still_launches(self) -> None:
        assert grouped_gemm_moe_s([0, 0, 0], shape(), GPU) == us(20 + 1.5)
        assert grouped_gemm_moe_s(np.zeros((2, 0), int), shape(), GPU) == us([20, 20])

    def test_leading_axes_are_independent(self) -> None:
        counts = np.random.default_rng(1).integers(0, 300, (3, 2, 5))
        device_tokens = np.arange(6).reshape(3, 2)
        times = grouped_gemm_moe_s(counts, shape(), GPU, device_tokens)
        assert times.shape == (3, 2) and times.dtype == np.float64
        for index in np.ndindex(3, 2):
            assert times[index] == grouped_gemm_moe_s(counts[index], shape(), GPU, device_tokens[index])

    def test_fractions_of_tokens_are_refused(self) -> None:
        with pytest.raises(TypeError, match="float64"):
            grouped_gemm_moe_s([0.5], shape(), GPU)

    def test_unknown_peak_is_an_error(self) -> None:
        with pytest.raises(HardwareError, match="nvfp4"):
            grouped_gemm_moe_s([1], shape(weight_dtype="nvfp4"), GPU)

    def test_roofline(self) -> None:
        gpu = round_gpu(moe=roofline("5 us", 0.5, 0.25))
        # Up GEMM of 1160 tokens: 2.43e9 FLOP at 500 TFLOP/s or 2 experts * 2 MiB at 1 TB/s; down half of both.
        gemms = max(1160 * 2 * 1024**2 / 500e6, 4.194304) + max(1160 * 1024**2 / 500e6, 2.097152)
        assert grouped_gemm_moe_s([160, 0, 1000], shape(), gpu) == us(5 + gemms + 1160 * 9216 / 1e6)
        # At one token each the weights count: 3 * 1024 * 512 of 2 bytes at 4 TB/s, and 4608 values.
        assert grouped_gemm_moe_s([1], shape(), ideal_gpu()) == us(3.145728e6 / 4e6 + 9216 / 4e6)
        assert grouped_gemm_moe_s([0, 0], shape(), ideal_gpu()) == 0

    def test_one_token_per_expert_approaches_streaming_of_all_weights(self) -> None:
        experts = shape(4096, 2048)
        streamed_s = 128 * 3 * 4096 * 2048 * 2 / (0.9 * 4.8e12)
        fixed_s = 27e-6 + 128 * 0.02e-6
        assert 1 < (grouped_gemm_moe_s([1] * 128, experts, h200()) - fixed_s) / streamed_s < 1.06

    def test_large_balanced_counts_approach_the_compute_bound(self) -> None:
        # 16 experts of 33 full tiles: 528 rows of tiles fill all 132 SMs in every wave.
        experts, tokens = shape(4096, 2048), 16 * 33 * 128
        bound_s = 2 * 3 * 4096 * 2048 * tokens / 989e12
        bare = {"wave_s": "0 s", "load_bytes_per_flop": None, "activation_frac": 1.0, "row_s": "0 s", "weight_frac": 1}
        rest_s = 27e-6 + 16 * 0.02e-6 + activation_bytes(tokens, experts) / 4.8e12
        ideal_s = grouped_gemm_moe_s([33 * 128] * 16, experts, h200(moe=bare)) - rest_s
        # Streaming, 168 us beside 3.4 ms, adds its square: 0.12 % in the p-norm.
        streamed_s = 16 * experts.weight_bytes / 4.8e12
        assert ideal_s == pytest.approx(pnorm2(bound_s, streamed_s), rel=1e-5)

    def test_fewer_active_experts_are_faster_at_small_batches(self) -> None:
        spread, skewed = [1] * 32, [17] + [1] * 15 + [0] * 16
        times = [grouped_gemm_moe_s(counts, shape(4096, 2048), h200()) for counts in (spread, skewed)]
        # Half the experts stream half the weights: the routed part takes half the time.
        assert (times[1] - 27e-6) / (times[0] - 27e-6) == pytest.approx(0.5, rel=0.05)

    def test_partly_filled_tiles_cost_whole_ones(self) -> None:
        # The same 65,536 tokens on 64 experts: 8 full tiles each, or 9 tiles for every other expert.
        counts = [[1024] * 64, [1025, 1023] * 32]
        gpu = h200(moe={"wave_s": "0 s", "load_bytes_per_flop": None, "tiles": "vllm-bf16"})
        rest_s = 27e-6 + 64 * 0.02e-6 + 65_536 * 1e-9 + activation_bytes(65_536, shape(4096, 2048)) / (0.4 * 4.8e12)
        even_s, odd_s = grouped_gemm_moe_s(counts, shape(4096, 2048), gpu) - rest_s
        assert odd_s / even_s == pytest.approx(8.5 / 8, rel=0.01)

    def test_expert_shape_of_a_model(self) -> None:
        split = expert_shape(model_card(expert_dtype="fp8_block"), tp=4)
        assert (split.hidden_size, split.intermediate_size, split.gated) == (7168, 512, True)
        assert split.weight_dtype == "fp8_block"
        assert 4 * split.weight_bytes == pytest.approx(model_card(expert_dtype="fp8_block").expert_bytes)
        assert expert_shape(model_card()).weight_dtype == "bf16"

    @pytest.mark.parametrize("tp", [0, 3])
    def test_tp_must_divide_the_intermediate_size(self, tp: int) -> None:
        with pytest.raises(ScenarioError, match=f"tp {tp} does not divide the intermediate size 2048"):
            expert_shape(model_card(), tp)


def gemms_us(tile: tuple[int, int], row_tiles: int, active: int, streamed: float = 2e6) -> float:
    """Both GEMMs of `shape()` in one kind of tile without loads, on 100 SMs: 5 MFLOP/us each."""
    rows, columns = tile
    total = 0.0
    for n, k in ((1024, 1024), (1024, 512)):
        waves = -(-row_tiles * -(-n // columns) // 100)
        total += pnorm2(waves * (2 * rows * columns * k / 5e6 + 1), active * n * k * 2 / streamed)
    return total


class TestTileRules:
    def test_the_fastest_tile_wins_for_both_gemms_together(self) -> None:
        for counts in ([1], [64] * 3, [160, 0, 1000], [17] * 40, [4096]):
            n = np.array(counts)
            times = [gemms_us(tile, int((-(-n // tile[0])).sum()), np.count_nonzero(n)) for tile in FASTEST]
            rest = 20 + 0.5 * len(n) + 0.01 * n.sum() + n.sum() * 9216 / 1e6
            assert grouped_gemm_moe_s(counts, shape(), FREE) == us(rest + min(times))

    @pytest.mark.parametrize(
        ("tokens", "tile"),
        [
            *((1, (16, 64)), (32, (16, 64)), (33, (32, 64)), (64, (32, 64)), (65, (32, 128)), (96, (32, 128))),
            *((97, (64, 128)), (512, (64, 128)), (513, (128, 128)), (4096, (128, 128))),
        ],
    )
    def test_vllm_chooses_by_the_tokens_of_the_call(self, tokens: int, tile: tuple[int, int]) -> None:
        gpu = round_gpu(moe={"load_bytes_per_flop": None, "tiles": "vllm-bf16"})
        # Two experts, top-1: each has half; of 3 slots, so that no file of tuned tiles counts.
        counts = [tokens - tokens // 2, tokens // 2, 0]
        row_tiles = sum(-(-count // tile[0]) for count in counts)
        gemms = gemms_us(tile, row_tiles, np.count_nonzero(counts))
        rest = 20 + 1.5 + 0.01 * tokens + tokens * 9216 / 1e6
        assert grouped_gemm_moe_s(counts, shape(), gpu, call_tokens=tokens) == us(rest + gemms)
        assert grouped_gemm_moe_s(counts, shape(), gpu) == us(rest + gemms)  # routed tokens where none are named

    def test_a_rule_by_tokens_may_differ_along_an_array(self) -> None:
        gpu = round_gpu(moe={"tiles": "vllm-bf16"})
        counts = np.array([[1, 2, 3], [300, 0, 5], [2000, 1, 1]])
        times = grouped_gemm_moe_s(counts, shape(), gpu, call_tokens=[3, 305, 2002])
        alone = [float(grouped_gemm_moe_s(row, shape(), gpu, call_tokens=row.sum())) for row in counts]
        assert times.tolist() == alone

    def test_sglang_chooses_by_tokens_per_expert_and_small_tiles_stream_slowly(self) -> None:
        gpu = round_gpu(moe={"load_bytes_per_flop": None, "tiles": "sglang-bf16", "small_tile_frac": 0.25})
        rest = 20 + 2 + 0.08 + 8 * 9216 / 1e6
        for call_tokens, tile, streamed in ((4, (16, 32), 2e6), (5, (64, 64), 1e6)):
            gemms = gemms_us(tile, 4, 4, streamed)
            assert grouped_gemm_moe_s([2] * 4, shape(), gpu, call_tokens=call_tokens) == us(rest + gemms)

    def test_shapes_with_tuned_tiles_take_the_fastest(self) -> None:
        tuned = shape(1024, 192)  # (128 experts, 192): a file for H200
        assert TILE_RULES["vllm-bf16"].is_tuned([128, 64], 192).tolist() == [True, False]
        counts = [10] * 128
        by_rule, fastest = (round_gpu(moe={"tiles": name}) for name in ("vllm-bf16", "fastest"))
        assert grouped_gemm_moe_s(counts, tuned, by_rule) == grouped_gemm_moe_s(counts, tuned, fastest)
        other = shape(1024, 200)
        assert grouped_gemm_moe_s(counts, other, by_rule) > grouped_gemm_moe_s(counts, other, fastest)

    def test_one_tile_for_all_sizes(self) -> None:
        gpu = round_gpu(moe={"load_bytes_per_flop": None, "tiles": "sglang-fp8-block"})
        for tokens in (1, 5000):
            gemms = gemms_us((64, 128), -(-tokens // 64), 1)
            rest = 20.5 + 0.01 * tokens + tokens * 9216 / 1e6
            assert grouped_gemm_moe_s([tokens], shape(), gpu) == us(rest + gemms)

    @pytest.mark.parametrize("name", TILE_RULES)
    def test_rules_hold_a_tile_for_every_step_and_powers_of_two(self, name: str) -> None:
        rule = TILE_RULES[name]  # type: ignore[index]
        assert all(rows & (rows - 1) == 0 for rows, _ in rule.tiles)  # tiles are counted by shifts
        if rule.by != "fastest":
            assert len(rule.tiles) == len(rule.up_to) + 1
            assert list(rule.up_to) == sorted(rule.up_to)
            assert rule.choice([0, 10**9], 8).tolist() == [0, len(rule.tiles) - 1]

    def test_tables_of_several_shapes_give_the_times_of_their_rows(self) -> None:
        law = GPU.kernels.moe("bf16").model_copy(update={"tiles": "vllm-bf16", "ragged_factor": 2.0})
        sizes = np.array([(1024, 512), (2048, 200), (1024, 1792)])
        counts = np.random.default_rng(2).integers(0, 90, (3, 8))
        every = ExpertShape(hidden_size=sizes[:, 0], intermediate_size=sizes[:, 1], gated=True, weight_dtype="bf16")
        times = moe_s(expert_work(counts, (16, 32, 64, 128)), every, GPU, law)
        for row, (hidden, inter) in enumerate(sizes.tolist()):
            one = expert_work(counts[row], (16, 32, 64, 128))
            assert times[row] == moe_s(one, shape(hidden, inter), GPU, law)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32])
def test_small_integers_do_not_overflow(dtype: type) -> None:
    top = min(np.iinfo(dtype).max, 60_000)  # type: ignore[type-var]
    counts = np.array([top, 1, top, top], dtype=dtype)
    work = expert_work(counts, (16, 128))
    assert work.routed == 3 * top + 1
    assert {rows: int(tiles) for rows, tiles in work.row_tiles.items()} == {
        rows: 3 * -(-top // rows) + 1 for rows in (16, 128)
    }
    assert grouped_gemm_moe_s(counts, shape(), GPU) == grouped_gemm_moe_s(counts.tolist(), shape(), GPU)


# Of a dense product of round numbers, alone: no loads, no stores, memory and products that take no time.
BARE = {"fixed_s": "2 us", "load_bytes_per_flop": None, "store_values_per_flop": None}


class TestDense:
    def test_tiles_run_in_waves(self) -> None:
        # m 256, n 3200, k 1024, tiles of 128 x 256: 2 * 13 = 26 on 100 SMs, 2 * 128 * 256 * 1024 at 10 TFLOP/s each;
        # 128 x 128: 50 tiles of half of that; 64 x 128: 100 tiles of a quarter, one wave: 1.6777216; 64 x 64: 200, two
        # waves of an eighth: the same. A split in 2 of 64 x 256 (52 tiles) needs two waves.
        gpu = round_gpu(gemm=BARE | {"split_s": "1 s"})
        computed = 2 * 64 * 128 * 1024 / 10e6
        memory = (1024 * 3200 * 2 + 256 * (1024 * 2 + 3200 * 2)) / 2e6
        peak = 2 * 256 * 3200 * 1024 / 500e6
        assert gemm_s(256, 3200, 1024, "bf16", gpu) == us(2 + pnorm4(computed, memory, peak))

    def test_few_tiles_split_k(self) -> None:
        # One row, n 64, k 8192: one tile of 64 x 64; 8192 values of K in 16 parts of 512, whose sums of 4 bytes go
        # over memory at 2 TB/s and take another kernel of 0.1 us.
        gpu = round_gpu(gemm=BARE | {"split_s": "0.1 us"})
        step = 2 * 64 * 64 / 10e6
        split = 512 * step + 0.1 + 4 * 16 * 64 / 2e6
        memory, peak = (8192 * 64 * 2 + (8192 + 64) * 2) / 2e6, 2 * 64 * 8192 / 500e6
        assert gemm_s(1, 64, 8192, "bf16", gpu) == us(2 + pnorm4(split, memory, peak))
        whole = round_gpu(gemm=BARE | {"split_s": "1 s"})
        assert gemm_s(1, 64, 8192, "bf16", whole) == us(2 + pnorm4(8192 * step, memory, peak))

    def test_a_tile_loads_both_operands_and_stores_its_results(self) -> None:
        # One row, n 64, k 640, not split: (64 + 64) * 2 bytes a step at 200 GB/s against 2 * 64 * 64 FLOP at 10 TFLOP/s
        # (0.00128 and 0.00082), and 2 * 64 * 64 values at 0.01 * 10 T/s = 0.08192 us. Wider tiles load more.
        gpu = round_gpu(gemm={"split_s": "1 s"})
        computed = 640 * 128 * 2 / 200e3 + 0.08192
        memory, peak = (640 * 64 * 2 + (640 + 64) * 2) / 2e6, 2 * 64 * 640 / 500e6
        assert gemm_s(1, 64, 640, "bf16", gpu) == us(2 + pnorm4(computed, memory, peak))

    def test_depth_is_a_multiple_of_64(self) -> None:
        gpu = round_gpu(gemm={"split_s": "1 s"})
        computed = 128 * 128 * 2 / 200e3 + 0.08192  # k 65 as 128
        memory, peak = (65 * 64 * 2 + (65 + 64) * 2) / 2e6, 2 * 64 * 65 / 500e6
        assert gemm_s(1, 64, 65, "bf16", gpu) == us(2 + pnorm4(computed, memory, peak))

    def test_a_batch_multiplies_tiles_bytes_and_flop(self) -> None:
        # 60 products of one tile fit one wave, 120 need two; splitting is ruled out.
        gpu = round_gpu(gemm={"split_s": "1 s"})
        for batch, waves in ((60, 1), (120, 2)):
            computed = waves * (640 * 128 * 2 / 200e3 + 0.08192)
            memory, peak = ((640 * 64 * 2 + (640 + 64) * 2) / 2e6, 2 * 64 * 640 / 500e6)
            expected = us(2 + pnorm4(computed, batch * memory, batch * peak))
            assert gemm_s(1, 64, 640, "bf16", gpu, batch=batch) == expected

    def test_quantising_the_input_reads_it_in_bf16_and_writes_it_as_multiplied(self) -> None:
        quantising, ready = round_gpu(), round_gpu(gemm={"quantise_frac": None})
        m, k = 100, 640
        for dtype, width in (("fp8", 1), ("fp8_block", 1)):
            extra = gemm_s(m, 64, k, dtype, quantising) - gemm_s(m, 64, k, dtype, ready)
            assert extra == pytest.approx(m * k * (2 + width) / 1e12)
        assert gemm_s(m, 64, k, "bf16", quantising) == gemm_s(m, 64, k, "bf16", ready)

    def test_zero_rows_leave_the_launch(self) -> None:
        for dtype in ("bf16", "fp8"):
            assert gemm_s([0, 0], 1000, 1000, dtype, GPU) == us([2, 2])

    def test_weight_only_types_stream_their_bytes_and_multiply_in_bf16(self) -> None:
        # One row of 20,000 x 20,000 weights: 212.5 MB of mxfp4 dominate.
        time_s = gemm_s(1, 20_000, 20_000, "mxfp4", round_gpu(gemm=roofline("0 s", 0.5, 0.5)))
        assert time_s == us((20_000**2 * 0.53125 + 20_000 * 4) / 2e6)

    def test_roofline(self) -> None:
        gpu = round_gpu(gemm=roofline("2 us", 0.5, 0.5))
        # One row: 2e6 + 4e3 bytes at 2 TB/s. 8000 rows: 1.6e10 FLOP at 500 TFLOP/s = 32 (memory: 17).
        assert gemm_s([0, 1, 8000], 1000, 1000, "bf16", gpu) == us([2, 3.002, 34])
        # 3 * (1e6 bytes of weights, 1000 of one input row in fp8 and 2000 of output) at 2 TB/s.
        assert gemm_s(1, 1000, 1000, "fp8", gpu, batch=3) == us(2 + 1.5045)

    def test_repeated_rows_are_priced_once_and_alike(self) -> None:
        rows = np.array([[7, 0, 300], [7, 7, 4096]], dtype=np.uint16)
        law = GPU.kernels.gemm("fp8")
        expected = product_s(rows, 640, 1000, "fp8", GPU, law, 3)
        assert gemm_s(rows, 640, 1000, "fp8", GPU, batch=3).tolist() == expected.tolist()

    def test_tables_of_several_shapes_give_the_times_of_their_rows(self) -> None:
        m, n, k = np.array([1, 100, 5000]), np.array([64, 4096, 640]), np.array([8192, 640, 65])
        law = GPU.kernels.gemm("bf16")
        times = product_s(m, n, k, "bf16", GPU, law)
        for row in range(3):
            assert times[row] == gemm_s(int(m[row]), int(n[row]), int(k[row]), "bf16", GPU)

    def test_large_products_approach_the_peak_and_single_rows_the_bandwidth(self) -> None:
        flop = 2 * 16_384 * 8192 * 8192
        assert 0.95 * 989e12 > flop / gemm_s(16_384, 8192, 8192, "bf16", h200()) > 0.75 * 989e12
        assert 0.8 * 4.8e12 > 2 * 16_384 * 8192 / gemm_s(1, 16_384, 8192, "bf16", h200()) > 0.7 * 4.8e12


ROOF = round_gpu(gemm=roofline("2 us", 0.5, 0.5))


class TestLayers:
    """On a GPU whose products follow a roofline, so that sums of kernels are seen."""

    def test_mlp_is_up_activation_and_down(self) -> None:
        # Up 2 + 2.4e6 B / 2 TB/s, activation 2 + 100 * 1500 * 2 B / 2 TB/s, down 2 + 1.3e6 B / 2 TB/s.
        assert mlp_s(100, 1000, 500, True, "bf16", ROOF) == us(3.2 + 2.15 + 2.65)
        # Not gated: 500 columns (1e6 + 3e5 bytes), activation 100 * 1000 * 2 bytes.
        assert mlp_s(100, 1000, 500, False, "bf16", ROOF) == us(2.65 + 2.1 + 2.65)

    def test_streaming_kernels(self) -> None:
        # 2 us and the bytes at half of 4 TB/s.
        assert stream_s([0, 4_000_000], GPU) == us([2, 4])
        assert norm_s(100, 1000, "bf16", GPU) == us(2.4)

    def test_head_rounds_the_vocabulary_up(self) -> None:
        assert head_s(1, 1000, 4001, 4, "bf16", ROOF) == us(3.003001)

    def test_gate_is_router_gemm_and_top_k(self) -> None:
        # GEMM 1e5 + 2.1e5 bytes; 50 scores of 4 bytes and 4 choices of 8 bytes a token; both at 2 TB/s, two kernels.
        assert gate_s(100, 1000, 50, 4, "bf16", ROOF) == us(2 + 0.155 + 2 + 100 * (200 + 32) / 2e6)


def test_devices_have_round_numbers() -> None:
    assert GPU.sm_bf16_flop_per_s == 10e12
    assert replace(GPU, kernels=h200().kernels).kernels.moe("bf16").compute_frac == 1.0


def model_card(**fields: object) -> ModelCard:
    card = {
        "name": "one layer of DeepSeek-V3",
        "sources": {"default": {"source": "arXiv 2412.19437", "kind": "published"}},
        "n_layers": 1,
        "hidden_size": 7168,
        "vocab_size": 129280,
        "attention": MLA,
        "n_experts": 256,
        "top_k": 8,
        "expert_intermediate_size": 2048,
    }
    return ModelCard.model_validate(card | fields)
