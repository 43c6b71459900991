"""Attention laws: hand numbers on `round_gpu` (times in microseconds)."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from hwmodels.attention import attention_decode_s, attention_prefill_s, attention_projections_s, windowed_context
from hwmodels.constants import DecodeConstants, MlaDecodeConstants, MlaPrefillConstants, PrefillConstants
from hwmodels.devices import Device
from hwmodels.gqa import HeadShape, Prompts, gqa_decode_s, gqa_prefill_s, tiles_per_sm
from hwmodels.kernels import Kernels
from hwmodels.mla import LatentShape, mla_decode_s, mla_prefill_s
from scenarios.errors import HardwareError, ScenarioError
from scenarios.models import Attention, GroupedQueryAttention, LatentAttention
from tests.devices import ideal_gpu, roofline, round_gpu

GPU = round_gpu()
GQA = GroupedQueryAttention(n_heads=32, n_kv_heads=4, head_dim=128)
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
HEADS = HeadShape(n_heads=32, n_kv_heads=4, head_dim=128)
LATENT = LatentShape(n_heads=128, cache_dim=576, latent_dim=512, key_dim=192, value_dim=128)
DECODE = cast(DecodeConstants, GPU.kernels.decode("bf16"))
PREFILL = cast(PrefillConstants, GPU.kernels.prefill("bf16"))
MLA_DECODE = cast(MlaDecodeConstants, GPU.kernels.mla_decode("bf16"))
MLA_PREFILL = cast(MlaPrefillConstants, GPU.kernels.mla_prefill("bf16"))
# Products follow a roofline of half the peak and bandwidth, so that kernels are seen.
ROOF = round_gpu(gemm=roofline("2 us", 0.5, 0.5))
# Reading of one tile: 0.5 and 2 * 176 * 128 values of 2 bytes at 80 GB/s.
TILE = 0.5 + 1.1264


def us(time_s: object) -> object:
    return pytest.approx(np.asarray(time_s) * 1e-6, rel=1e-12)


def root4(first: float, second: float) -> float:
    return float((first**4 + second**4) ** 0.25)


class TestDecode:
    def test_long_contexts_are_split_over_idle_sms(self) -> None:
        # 20 units of 57 tiles: ceil(1.1 * 57 * 20 / 100) = 13 tiles each, one wave, at most 16 parts (4 tiles).
        # 50,000 tokens * 4 * 128 * 2 values of 2 bytes and 5 * 32 * 128 queries and outputs, at 2 TB/s.
        read = root4(13 * TILE, (102.4e6 + 81_920) / 2e6)
        assert gqa_decode_s(5, 50_000, HEADS, "bf16", GPU, DECODE) == us(8 + 4 + read + 2 + 0.05)

    def test_many_requests_run_in_waves(self) -> None:
        # 480 units of one tile on 100 SMs: 4.8 times a unit's time, five tiles after each other.
        read = root4(5 * TILE, (24.576e6 + 1.96608e6) / 2e6)
        assert gqa_decode_s(120, 12_000, HEADS, "bf16", GPU, DECODE) == us(8 + 4.8 * 4 + read + 1.2)

    def test_an_engine_may_not_split_or_not_schedule(self) -> None:
        whole = DECODE.model_copy(update={"unsplit_tiles": 57, "scheduled_requests": 4})
        read = root4(57 * TILE, (102.4e6 + 81_920) / 2e6)
        assert gqa_decode_s(5, 50_000, HEADS, "bf16", GPU, whole) == us(8 + 4 + read)

    def test_parts_are_limited(self) -> None:
        # One request of 800 tiles: a hundredth would be 9, but 16 parts have 50.
        assert tiles_per_sm(np.array(800.0), np.array(1.0), 100, 16, 0) == 50
        assert tiles_per_sm(np.array(800.0), np.array(1.0), 100, 128, 0) == 9

    def test_a_window_adds_masking_and_narrow_heads_pay_more(self) -> None:
        plain = gqa_decode_s(5, 640, HEADS, "bf16", GPU, DECODE)
        assert gqa_decode_s(5, 640, replace(HEADS, window_tokens=128), "bf16", GPU, DECODE) - plain == us(4)
        assert gqa_decode_s(5, 635, replace(HEADS, window_tokens=128), "bf16", GPU, DECODE) <= plain
        narrow = replace(HEADS, head_dim=32)
        masked = gqa_decode_s(5, 640, replace(narrow, window_tokens=128), "bf16", GPU, DECODE)
        assert masked - gqa_decode_s(5, 640, narrow, "bf16", GPU, DECODE) == us(8)

    def test_tiles_hold_fewer_tokens_of_wide_heads(self) -> None:
        # 100 units, one tile each up to 192, 176, 112, 80 tokens at head_dim 64, 128, 192, 256; one token more is two.
        for dim, tokens in ((64, 192), (128, 176), (192, 112), (256, 80)):
            wide = HeadShape(n_heads=4, n_kv_heads=1, head_dim=dim)
            read_s = np.diff([gqa_decode_s(100, 100 * n, wide, "bf16", GPU, DECODE) for n in (tokens, tokens + 1)])
            tile = 0.5 + 4 * tokens * dim / 80e3
            moved = [(100 * n * 4 * dim + 100 * 4 * dim * 4) / 2e6 for n in (tokens, tokens + 1)]
            assert read_s == us([root4(2 * tile, moved[1]) - root4(tile, moved[0])])

    def test_head_dim_192_has_more_launches(self) -> None:
        none = replace(HEADS, head_dim=192)
        assert gqa_decode_s(0, 0, none, "bf16", GPU, DECODE) == us(8 + 5)

    def test_groups_beyond_a_tile_of_queries_read_the_cache_twice(self) -> None:
        wide, wider = (HeadShape(n_heads=n, n_kv_heads=1, head_dim=128) for n in (128, 129))
        times = [gqa_decode_s(100, 12_800, shape, "bf16", GPU, DECODE) for shape in (wide, wider)]
        # 100 units of one tile become 200; one head more moves 100 * 128 * 4 bytes.
        moved = [(12_800 * 512 + 100 * heads * 512) / 2e6 for heads in (128, 129)]
        assert times == [us(8 + 4 + 1 + root4(TILE, moved[0])), us(8 + 8 + 1 + root4(2 * TILE, moved[1]))]

    def test_arrays_of_shapes_give_the_times_of_their_parts(self) -> None:
        heads, dims, windows = np.array([8, 16, 64]), np.array([64, 128, 256]), np.array([np.inf, 128, 1024])
        shape = HeadShape(n_heads=heads, n_kv_heads=8, head_dim=dims, window_tokens=windows)
        times = gqa_decode_s([[3], [200]], [[384], [25_600]], shape, "fp8", GPU, DECODE)
        assert times.shape == (2, 3)
        for row, (batch, context) in enumerate(((3, 384), (200, 25_600))):
            for place in range(3):
                one = HeadShape(n_heads=heads[place], n_kv_heads=8, head_dim=dims[place], window_tokens=windows[place])
                assert times[row, place] == gqa_decode_s(batch, context, one, "fp8", GPU, DECODE)


class TestPrefill:
    def test_one_prompt(self) -> None:
        # g 8: 4 * ceil(8000 / 128) = 252 items on 100 SMs; io 128 * 128 * 4 bytes at 10 GB/s = 6.5536.
        # Tiles 4 * 1000 * (500.5 + 7.5) / (128 * 16) + 126, each 4 * 128 * 128 * 160 FLOP at 5 TFLOP/s = 2.097152.
        total = 3 * (3 + 6.5536) + 1118.1875 * 2.097152 / 100
        longest = 6.5536 + (1000 / 128 + 0.5) * 2.097152
        # 1000 * 2 * 4 * 128 values, read and written as 2 bytes, at 1 TB/s; 1000 tokens of 512 threads.
        written = 4.096 + 1
        assert gqa_prefill_s(Prompts(1, 1000, 500_500), HEADS, "bf16", GPU, PREFILL) == us(
            8 + root4(total, longest) + written
        )

    def test_few_items_split_their_contexts(self) -> None:
        # 8 items on 100 SMs: 1000 / 128 tiles are shared by 12.5, but one is the least.
        one = HeadShape(n_heads=1, n_kv_heads=1, head_dim=128)
        blocks = 1000 * (500.5 + 63.5) / (128 * 128) + 4
        total = 3 + 6.5536 + blocks * 2.097152 / 100
        split, whole = 6.5536 + 1.5 * 2.097152 + 2, 6.5536 + (1000 / 128 + 0.5) * 2.097152
        rest = 8 + 1.024 + 0.25
        for unsplit, longest in ((4, split), (8, whole)):
            constants = PREFILL.model_copy(update={"unsplit_tiles": unsplit})
            times = gqa_prefill_s(Prompts(1, 1000, 500_500), one, "bf16", GPU, constants)
            assert times == us(rest + root4(total, longest))

    def test_a_window_shortens_contexts_and_adds_masking(self) -> None:
        windowed = replace(HEADS, window_tokens=128)
        pairs = 128 * 129 // 2 + 872 * 128
        blocks = 4 * (pairs + 7500) / (128 * 16) + 126
        total = 3 * (3 + 6.5536 + 4) + blocks * 2.097152 / 100
        longest = 6.5536 + 4 + 1.5 * 2.097152
        expected = us(8 + root4(total, longest) + 4.096 + 1)
        assert gqa_prefill_s(Prompts(1, 1000, pairs), windowed, "bf16", GPU, PREFILL) == expected
        whole = gqa_prefill_s(Prompts(1, 128, 8256), HEADS, "bf16", GPU, PREFILL)
        assert gqa_prefill_s(Prompts(1, 128, 8256), windowed, "bf16", GPU, PREFILL) == whole

    def test_a_chunk_reads_the_cache_of_its_past(self) -> None:
        # Tokens 500..999 of a prompt in fp8: 500 new ones read in 2 bytes and written in one, 500 read in one.
        share = 4 * 500 * (750.5 + 7.5) / (128 * 16) + 64
        total = 2 * (3 + 6.5536) + share * 2.097152 / 100
        longest = 6.5536 + (1000 / 128 + 0.5) * 2.097152
        moved = (500 * 3 + 500) * 2 * 4 * 128 / 1e6
        times = gqa_prefill_s(Prompts(1, 500, 375_250), HEADS, "fp8", GPU, PREFILL)
        assert times == us(8 + root4(total, longest) + moved + 0.5)


class TestLatent:
    def test_decode_reads_the_latent_once_for_64_heads(self) -> None:
        # 10 requests * 2 units of 16 tiles: ceil(1.1 * 16 * 20 / 100) = 4 tiles each. A unit moves 64 * 1088 * 2 bytes
        # at 40 GB/s; a tile takes 64 * 576 * 2 bytes at 80 GB/s or 2 * 64 * 64 * 1088 FLOP at 5 TFLOP/s.
        unit = 3 + 3.4816
        tile = max(0.9216, 1.7825792)
        moved = (10_000 * 1152 + 10 * 128 * 1088 * 2) / 2e6
        expected = 8 + unit + root4(4 * tile, moved) + 2 + 0.1
        assert mla_decode_s(10, 10_000, LATENT, "bf16", GPU, MLA_DECODE) == us(expected)

    def test_an_engine_may_expand_the_cache_first(self) -> None:
        cast = MLA_DECODE.model_copy(update={"cast_frac": 0.25})
        plain = mla_decode_s(10, 10_000, LATENT, "bf16", GPU, MLA_DECODE)
        # 10,000 * 576 values of 1 + 2 bytes at 1 TB/s.
        assert mla_decode_s(10, 10_000, LATENT, "fp8", GPU, cast) - plain == us(17.28)

    def test_prefill_is_that_of_expanded_heads_or_of_one_latent_head(self) -> None:
        expanded = HeadShape(n_heads=128, n_kv_heads=128, head_dim=160)
        absorbed = HeadShape(n_heads=128, n_kv_heads=1, head_dim=544)
        constants = MLA_PREFILL
        for form, shape in (("expanded", expanded), ("absorbed", absorbed)):
            of_form = constants.model_copy(update={"form": form})
            times = mla_prefill_s(Prompts(1, 1000, 500_500), LATENT, "bf16", GPU, of_form)
            assert times == gqa_prefill_s(Prompts(1, 1000, 500_500), shape, "bf16", GPU, of_form)


class TestRoofline:
    """5 us and the larger of products at half of 1 PFLOP/s and bytes at a quarter of 4 TB/s."""

    LAW = roofline("5 us", 0.5, 0.25)

    def test_decode_streams_the_cache(self) -> None:
        # 50,000 tokens * 4 * 128 * 2 values of 2 bytes, 5 * 32 * 128 queries and outputs; 4 FLOP a value and head.
        expected = us(5 + max((102.4e6 + 81_920) / 1e6, 4 * 50_000 * 32 * 128 / 500e6))
        assert gqa_decode_s(5, 50_000, HEADS, "bf16", GPU, self.LAW) == expected

    def test_prefill_computes_every_pair(self) -> None:
        # 1e6 tokens attend to 5e11 tokens: 4 * 32 * 128 FLOP each; a single token moves 2 * 2 * 36 * 128 bytes.
        times = gqa_prefill_s(Prompts(1, [1_000_000, 1], [500_000_500_000, 1]), HEADS, "bf16", GPU, self.LAW)
        assert times == us([5 + 500_000_500_000 * 16_384 / 500e6, 5 + 18_432 / 1e6])

    def test_latent_attention(self) -> None:
        # Decode: 10,000 * 576 cached bytes of fp8 and 10 * 128 * 1088 values of 2 bytes; or 2 * 1088 FLOP a head.
        expected = us(5 + max((5.76e6 + 2.78528e6) / 1e6, 2 * 10_000 * 128 * 1088 / 500e6))
        assert mla_decode_s(10, 10_000, LATENT, "fp8", GPU, self.LAW) == expected
        expanded = HeadShape(n_heads=128, n_kv_heads=128, head_dim=160)
        times = mla_prefill_s(Prompts(1, 1000, 500_500), LATENT, "bf16", GPU, self.LAW)
        assert times == gqa_prefill_s(Prompts(1, 1000, 500_500), expanded, "bf16", GPU, self.LAW)


def of_cache(dtype: str) -> Device:
    """`round_gpu` with laws for one data type of the cache alone."""
    card = GPU.kernels.cards[0]
    laws = {block: {dtype: getattr(card, block)["any"]} for block in ("decode", "prefill", "mla_decode", "mla_prefill")}
    return replace(GPU, kernels=Kernels(cards=(card.model_copy(update=laws),)))


class TestLayers:
    def test_laws_are_those_of_the_caches_data_type(self) -> None:
        for attention in (GQA, MLA):
            for law in (attention_decode_s, attention_prefill_s):
                assert law(1, 1, attention, 1, "fp8", of_cache("fp8")) == law(1, 1, attention, 1, "fp8", GPU)
                with pytest.raises(HardwareError, match=r"no constants of (mla_)?(decode|prefill) for bf16"):
                    law(1, 1, attention, 1, "bf16", of_cache("fp8"))

    def test_heads_are_shared_and_kv_heads_repeated_where_devices_outnumber_them(self) -> None:
        for tp, heads, kv_heads in ((1, 32, 4), (2, 16, 2), (8, 4, 1)):
            shape = HeadShape(n_heads=heads, n_kv_heads=kv_heads, head_dim=128)
            times = attention_decode_s(10, 10_000, GQA, tp, "bf16", GPU)
            assert times == gqa_decode_s(10, 10_000, shape, "bf16", GPU, DECODE)

    def test_the_cache_of_mla_is_not_shared(self) -> None:
        shape = replace(LATENT, n_heads=16)
        times = attention_decode_s(10, 10_000, MLA, 8, "fp8", GPU)
        assert times == mla_decode_s(10, 10_000, shape, "fp8", GPU, MLA_DECODE)

    def test_prompts_are_recognised_by_their_pairs(self) -> None:
        cases = ((1, 1000, 500_500), (2, 2000, 1_001_000), (1, 500, 375_250))
        for requests, queries, pairs in cases:
            times = attention_prefill_s(queries, pairs, GQA, 1, "bf16", GPU)
            assert times == pytest.approx(gqa_prefill_s(Prompts(requests, queries, pairs), HEADS, "bf16", GPU, PREFILL))
        times = attention_prefill_s(2000, 1_001_000, MLA, 2, "bf16", GPU)
        shape = replace(LATENT, n_heads=64)
        expected = mla_prefill_s(Prompts(2, 2000, 1_001_000), shape, "bf16", GPU, MLA_PREFILL)
        assert times == pytest.approx(expected)

    def test_a_window_of_the_layer_masks(self) -> None:
        windowed = GQA.model_copy(update={"window_tokens": 128})
        plain, masked = (attention_decode_s(5, 640, a, 1, "bf16", GPU) for a in (GQA, windowed))
        assert masked - plain == us(4)

    def test_nothing_to_attend_leaves_the_launch(self) -> None:
        for attention in (GQA, MLA):
            assert attention_decode_s(0, 0, attention, 1, "bf16", GPU) == us(8)
            assert attention_prefill_s(0, 0, attention, 1, "bf16", GPU) == us(8)
            assert attention_decode_s(0, 0, attention, 1, "bf16", ideal_gpu()) == 0
            assert attention_prefill_s(0, 0, attention, 1, "bf16", ideal_gpu()) == 0

    def test_tp_must_divide_the_heads(self) -> None:
        with pytest.raises(ScenarioError, match="tp 3 does not divide 32 heads"):
            attention_decode_s(1, 1, GQA, 3, "bf16", GPU)

    def test_window_clips_contexts(self) -> None:
        assert windowed_context([100, 128, 5000], 128).tolist() == [100, 128, 128]
        assert windowed_context([100, 5000], None).tolist() == [100, 5000]


def test_gqa_projections() -> None:
    # QKV: 5120 x 1000 weights and 6120 values; output: 1000 x 4096 and 5096 values; 2 bytes at 2 TB/s.
    assert attention_projections_s(1, GQA, 1000, 1, "bf16", ROOF) == us(2 + 5.12612 + 2 + 4.101096)


@pytest.mark.parametrize(
    ("attention", "kernels"), [(GQA, 2), (MLA, 5), (MLA.model_copy(update={"q_lora_rank": None}), 4)]
)
def test_projections_stream_the_weights_of_the_card(attention: Attention, kernels: int) -> None:
    streamed_s = attention_projections_s(1, attention, 7168, 1, "bf16", ROOF) - kernels * 2e-6
    assert streamed_s * 2e12 == pytest.approx(2 * attention.parameters(7168), rel=0.01)


def test_mla_down_projection_is_not_split() -> None:
    half_s = attention_projections_s(1, MLA, 7168, 2, "bf16", ROOF) - 5 * 2e-6
    whole_s = attention_projections_s(1, MLA, 7168, 1, "bf16", ROOF) - 5 * 2e-6
    down_s = 7168 * (1536 + 576) * 2 / 2e12
    assert half_s == pytest.approx(down_s + (whole_s - down_s) / 2, rel=0.01)
