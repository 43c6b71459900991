"""What must hold of the kernel and link laws for any shape: exact time scaling, monotony, no order among slots."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodels import attention, gemm, links, moe
from hwmodels.devices import Device
from hwmodels.fitted import stretched
from hwmodels.kernels import BLOCKS, Kernels
from scenarios.models import GroupedQueryAttention, LatentAttention
from tests.devices import ROUND, h200, half_speed, half_speed_link, link, roofline

FIXED = settings(derandomize=True, deadline=None, max_examples=60)
FAST = h200()
FREE = h200(moe={"load_bytes_per_flop": None})  # a tile takes the same whatever its tokens
ROUND_ATTENTION = h200(**{block: ROUND[block] for block in ("decode", "prefill", "mla_decode", "mla_prefill")})
WHOLE = {"unsplit_tiles": 1_000_000}
UNSPLIT = h200(prefill=ROUND["prefill"] | WHOLE, mla_prefill=ROUND["mla_prefill"] | WHOLE)
# Every branch of every law: rules of tiles, small tiles, ragged sizes, casts, absorbed prefill, rooflines.
EVERY_LAW = (
    FAST,
    FREE,
    ROUND_ATTENTION,
    h200(moe={"tiles": "vllm-bf16", "ragged_factor": 3.3}, gemm={"quantise_frac": None}, mla_decode={"cast_frac": 0.3}),
    h200(moe={"tiles": "sglang-bf16", "small_tile_frac": 0.6}, mla_prefill={"form": "absorbed"}),
    h200(moe={"tiles": "vllm-fp8-block"}, gemm={"load_bytes_per_flop": None, "store_values_per_flop": None}),
    h200(**{block: roofline("5 us", 0.7, 0.9) for block in BLOCKS}),
)
DTYPES = ("bf16", "fp8", "fp8_block", "int4", "mxfp4")

sizes = st.integers(1, 20_000)
tokens = st.integers(0, 100_000)
slot_tokens = st.lists(st.one_of(st.just(0), st.integers(1, 40), tokens), min_size=1, max_size=40)
dtypes = st.sampled_from(DTYPES)
tps = st.sampled_from((1, 2, 4, 8))
expert_shapes = st.builds(
    moe.ExpertShape,
    hidden_size=sizes,
    intermediate_size=sizes,
    gated=st.booleans(),
    weight_dtype=dtypes,
)
gqas = st.builds(
    GroupedQueryAttention,
    n_heads=st.sampled_from((8, 16, 64)),
    n_kv_heads=st.sampled_from((1, 4, 8)),
    head_dim=st.sampled_from((64, 128)),
)
mlas = st.builds(
    LatentAttention,
    kind=st.just("mla"),
    n_heads=st.sampled_from((16, 128)),
    q_lora_rank=st.sampled_from((None, 1536)),
    kv_lora_rank=st.just(512),
    qk_nope_head_dim=st.just(128),
    qk_rope_head_dim=st.just(64),
    v_head_dim=st.just(128),
)
attentions = st.one_of(gqas, mlas)


@FIXED
@given(slot_tokens, expert_shapes, tokens, tokens, st.sampled_from(EVERY_LAW))
def test_halving_all_speeds_doubles_routed_experts(counts, shape, own_tokens, call_tokens, fast):
    times = [
        moe.grouped_gemm_moe_s(counts, shape, device, own_tokens, call_tokens) for device in (fast, half_speed(fast))
    ]
    assert times[1] == 2 * times[0]


@FIXED
@given(tokens, sizes, sizes, dtypes, st.booleans(), st.sampled_from(EVERY_LAW))
def test_halving_all_speeds_doubles_dense_layers(m, n, k, dtype, gated, fast):
    def times(device: Device) -> list[float]:
        return [
            float(time_s)
            for time_s in (
                gemm.gemm_s(m, n, k, dtype, device, batch=3),
                gemm.mlp_s(m, n, k, gated, dtype, device),
                gemm.norm_s(m, n, "bf16", device),
                gemm.head_s(m, n, k, 2, dtype, device),
                gemm.gate_s(m, n, k, 8, "bf16", device),
                gemm.stream_s(m, device),
            )
        ]

    assert times(half_speed(fast)) == [2 * time_s for time_s in times(fast)]


@FIXED
@given(tokens, tokens, attentions, tps, dtypes, st.sampled_from(EVERY_LAW))
def test_halving_all_speeds_doubles_attention(requests, context, spec, tp, dtype, fast):
    def times(device: Device) -> list[float]:
        return [
            float(attention.attention_decode_s(requests, context, spec, tp, dtype, device)),
            float(attention.attention_prefill_s(requests, context, spec, tp, dtype, device)),
            float(attention.attention_projections_s(requests, spec, 4096, tp, dtype, device)),
        ]

    assert times(half_speed(fast)) == [2 * time_s for time_s in times(fast)]


@FIXED
@given(st.integers(0, 2**40), st.integers(1, 512), st.floats(0.1, 1.0))
def test_halving_all_speeds_doubles_transfers(moved_bytes, n_devices, efficiency):
    fast = link(efficiency=efficiency)
    slow = half_speed_link(fast)
    assert links.port_s(moved_bytes, slow) == 2 * links.port_s(moved_bytes, fast)
    assert links.transfer_s(moved_bytes, slow) == 2 * links.transfer_s(moved_bytes, fast)
    for collective in (links.all_gather_s, links.reduce_scatter_s, links.all_reduce_s):
        assert collective(moved_bytes, n_devices, slow) == 2 * collective(moved_bytes, n_devices, fast)


@FIXED
@given(slot_tokens, expert_shapes, st.data())
def test_more_tokens_never_make_routed_experts_faster(counts, shape, data):
    slot = data.draw(st.integers(0, len(counts) - 1))
    more = list(counts)
    more[slot] += data.draw(st.integers(1, 300))
    assert moe.grouped_gemm_moe_s(more, shape, FREE) >= moe.grouped_gemm_moe_s(counts, shape, FREE)


@FIXED
@given(slot_tokens.filter(any), expert_shapes, st.sampled_from(EVERY_LAW), st.data())
def test_more_tokens_in_the_tiles_that_run_never_make_routed_experts_faster(counts, shape, device, data):
    # A tile that begins has fewer tokens to load than those before, so the last tile of 16 rows is filled at most.
    slot = data.draw(st.sampled_from([slot for slot, count in enumerate(counts) if count]))
    more = list(counts)
    more[slot] += data.draw(st.integers(0, -counts[slot] % 16))
    call_tokens = sum(counts)  # the same kernels
    times = [moe.grouped_gemm_moe_s(each, shape, device, 0, call_tokens) for each in (counts, more)]
    assert times[0] <= times[1]


@FIXED
@given(slot_tokens.filter(lambda counts: len(counts) > 1), expert_shapes)
def test_merging_two_experts_never_slows_down(counts, shape):
    merged = [counts[0] + counts[1], 0, *counts[2:]]
    assert moe.grouped_gemm_moe_s(merged, shape, FREE) <= moe.grouped_gemm_moe_s(counts, shape, FREE)


@FIXED
@given(st.integers(1, 32), st.sampled_from((1024, 2880, 4096)))
def test_more_distinct_experts_are_slower_when_memory_bound(active, intermediate):
    # 64 tokens on ever more of 64 experts: with at most 64 rows each, weights decide.
    shape = moe.ExpertShape(hidden_size=4096, intermediate_size=intermediate, gated=True, weight_dtype="bf16")
    times = []
    for n_active in (active, 2 * active):
        counts = np.zeros(64, dtype=np.int64)
        counts[:n_active] = np.diff(np.linspace(0, 64, n_active + 1).astype(np.int64))
        times.append(float(moe.grouped_gemm_moe_s(counts, shape, FAST)))
    assert times[1] > times[0]


@FIXED
@given(slot_tokens, expert_shapes, st.sampled_from(EVERY_LAW), st.randoms(use_true_random=False))
def test_order_of_slots_does_not_matter(counts, shape, device, random):
    shuffled = list(counts)
    random.shuffle(shuffled)
    assert moe.grouped_gemm_moe_s(shuffled, shape, device) == moe.grouped_gemm_moe_s(counts, shape, device)


@FIXED
@given(st.lists(tokens, min_size=2, max_size=6), sizes, sizes, dtypes, st.sampled_from(EVERY_LAW))
def test_more_rows_never_make_dense_layers_faster(rows, n, k, dtype, device):
    ordered = sorted(rows)
    for times in (
        gemm.gemm_s(ordered, n, k, dtype, device),
        gemm.mlp_s(ordered, n, k, True, dtype, device),
        gemm.gate_s(ordered, n, k, 8, "bf16", device),
    ):
        assert (np.diff(times) >= 0).all()


@FIXED
@given(st.integers(1, 4096), st.lists(st.integers(0, 10**7), min_size=2, max_size=6), attentions, tps, dtypes)
def test_more_context_never_makes_decode_faster(requests, contexts, spec, tp, dtype):
    times = attention.attention_decode_s(requests, sorted(contexts), spec, tp, dtype, ROUND_ATTENTION)
    assert (np.diff(times) >= 0).all()


@FIXED
@given(st.lists(st.integers(1, 20_000), min_size=2, max_size=6), attentions, tps)
def test_more_requests_are_never_faster_but_for_the_combining_that_ends(numbers, spec, tp):
    ordered = np.array(sorted(numbers))
    times = attention.attention_decode_s(ordered, ordered * 1000, spec, tp, "bf16", ROUND_ATTENTION)
    assert (np.diff(times) >= -ROUND_ATTENTION.kernels.decode("bf16").split_s).all()


@FIXED
@given(st.integers(1, 64), st.lists(st.integers(1, 20_000), min_size=2, max_size=6), attentions, tps)
def test_longer_prompts_are_never_faster_but_for_splitting(requests, lengths, spec, tp):
    ordered = np.array(sorted(lengths))
    pairs = requests * ordered * (ordered + 1) // 2
    times = attention.attention_prefill_s(requests * ordered, pairs, spec, tp, "bf16", UNSPLIT)
    assert (np.diff(times) >= -1e-12).all()


@FIXED
@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=6), st.integers(1, 512))
def test_more_bytes_or_devices_never_make_collectives_faster(sizes_bytes, n_devices):
    ordered = np.array(sorted(sizes_bytes))
    for collective in (links.all_gather_s, links.reduce_scatter_s, links.all_reduce_s):
        assert (np.diff(collective(ordered, n_devices, link())) >= 0).all()
        grown = [collective(ordered, n, link()) for n in (n_devices, n_devices + 1)]
        assert all((more >= fewer * (1 - 1e-12)).all() for fewer, more in pairwise(grown))


@settings(FIXED, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1), expert_shapes)
def test_arrays_give_the_times_of_their_parts(n_steps, n_devices, seed, shape):
    counts = np.random.default_rng(seed).integers(0, 200, (n_steps, n_devices, 4))
    times = moe.grouped_gemm_moe_s(counts, shape, FAST)
    parts = [[float(moe.grouped_gemm_moe_s(device, shape, FAST)) for device in step] for step in counts]
    assert times.tolist() == parts
    assert moe.grouped_gemm_moe_s(counts.astype(np.uint8), shape, FAST).tolist() == parts


@settings(FIXED, max_examples=30)
@given(st.lists(tokens, min_size=1, max_size=20), sizes, sizes, dtypes, st.sampled_from(EVERY_LAW), st.integers(1, 9))
def test_repeated_rows_cost_what_each_costs(rows, n, k, dtype, device, batch):
    law = device.kernels.gemm(dtype)
    every = gemm.gemm_s([rows, rows[::-1]], n, k, dtype, device, batch)
    alone = [float(gemm.product_s(row, n, k, dtype, device, law, batch)) for row in rows]
    assert every.tolist() == [alone, alone[::-1]]


def stretched_device(device: Device, factor: float) -> Device:
    """The device with every block of its kernels stretched, as a band does."""
    (card,) = device.kernels.cards
    laws = {block: {dtype: stretched(law, factor) for dtype, law in getattr(card, block).items()} for block in BLOCKS}
    launch = stretched(device.kernels.launch(), factor)
    return replace(device, kernels=Kernels(cards=(card.model_copy(update=laws | {"launch": launch}),)))


@settings(FIXED, max_examples=40)
@given(slot_tokens, expert_shapes, tokens, attentions, tps, dtypes, st.sampled_from(EVERY_LAW))
def test_stretched_constants_stretch_every_time(counts, shape, context, spec, tp, dtype, device):
    slow = stretched_device(device, 2.0)
    for times in (
        lambda d: moe.grouped_gemm_moe_s(counts, shape, d, context),
        lambda d: attention.attention_decode_s(7, context, spec, tp, dtype, d),
        lambda d: attention.attention_prefill_s(context, context, spec, tp, dtype, d),
        lambda d: gemm.norm_s(context, 4096, "bf16", d),
    ):
        assert times(slow) == 2 * times(device)


def test_stretched_constants_stretch_products():
    for rows in (1, 300, 8192):
        times = [gemm.gemm_s(rows, 8192, 8192, "bf16", device) for device in (FAST, stretched_device(FAST, 1.25))]
        assert times[1] == pytest.approx(1.25 * times[0])
