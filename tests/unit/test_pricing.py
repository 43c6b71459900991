"""Prices of works by hand, and that they use the kernel laws with the right arguments."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hwmodels.attention import attention_decode_s, attention_prefill_s, attention_projections_s
from hwmodels.gemm import mlp_s, norm_s
from hwmodels.library import find_kernels
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from placement.moe_time import tokens_by_rank
from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.models import ModelCard
from scenarios.schedule_specs import DedupName, ExchangeSpec, ScheduleSpec
from sim.durations import Duration, ExchangeTime
from sim.forward import build_step
from sim.kernel_pricing import token_bytes
from sim.policies import MICROBATCHED, POLICIES, SPLIT_ATTENTION, TILED
from sim.pricing import Prices, price
from sim.program import Work, compile_program
from sim.setting import Setting
from sim.tile_pricing import tile_prices
from tests.devices import ideal_gpu, roofline, round_gpu
from tests.small import (
    even_placement,
    gqa,
    random_placement,
    random_trace,
    reduced,
    tiny_cluster,
    tiny_model,
    tiny_setting,
    trace_of,
)

IDEAL = ideal_gpu()  # 4 TB/s and 1 PFLOP/s, reached at once
BYTES_PER_S = 4e12
H, TOKEN_BYTES = 64, 64 * 2
INTRA, INTER = 80e9, 8e9


def prices_of(
    setting: Setting, placement: Placement | None = None, schedule: ScheduleSpec | None = None
) -> tuple[Prices, Placement]:
    placement = placement or even_placement(setting.model, setting.layout.n_ranks)
    schedule = schedule or ScheduleSpec()
    microbatched = schedule.overlap in MICROBATCHED
    reduction = reduced(setting, placement, schedule)
    return price(setting, placement, reduction, schedule.exchange, microbatched=microbatched), placement


def setting_of(model: ModelCard | None = None, n_nodes: int = 1, **fields: object) -> Setting:
    model = model or tiny_model()
    cluster = tiny_cluster(n_nodes, fields.pop("devices_per_node", 4), device=fields.pop("device", round_gpu()))
    return tiny_setting(model, cluster, random_trace(model), **fields)


def exchange(**fields: object) -> ScheduleSpec:
    return ScheduleSpec(exchange=ExchangeSpec.model_validate(fields))


def seconds(duration: Duration) -> NDArray[np.float64]:
    assert isinstance(duration, np.ndarray)
    return duration


def ports(duration: Duration) -> ExchangeTime:
    assert isinstance(duration, ExchangeTime)
    return duration


def test_a_decode_layer_on_an_ideal_card_moves_its_bytes() -> None:
    setting = setting_of(device=IDEAL)
    prices, _ = prices_of(setting)
    norm = 4 * 4 * H * 2  # four rows of 4 tokens
    qkv = H * 128 * 2 + 4 * (H + 128) * 2  # 4 query and 2 + 2 key and value heads of 16
    output = H * 64 * 2 + 4 * (64 + H) * 2
    cache = setting.batches.contexts.sum(axis=-1) * 2 * 2 * 16 * 2
    queries = 4 * 2 * 4 * 16 * 2  # and outputs
    attention_s = (norm + qkv + output + cache + queries) / BYTES_PER_S
    np.testing.assert_allclose(seconds(prices.of(Work("attention", 1))), attention_s, rtol=1e-12)
    gate = norm + (H * 8 * 2 + 4 * (H + 8) * 2) + 4 * (8 * 4 + 2 * 8)  # scores, then weights and ids of two choices
    np.testing.assert_allclose(seconds(prices.of(Work("gate", 1))), gate / BYTES_PER_S, rtol=1e-12)
    head = norm + (H * 256 * 2 + 4 * (H + 256) * 2)
    np.testing.assert_allclose(seconds(prices.of(Work("head"))), head / BYTES_PER_S, rtol=1e-12)


def test_fixed_times_of_a_layer_are_those_of_its_kernels() -> None:
    # 2 us for norms and top-k, 3 us for every GEMM, 8 us for attention
    late = round_gpu(gemm=roofline("3 us"), decode=roofline("8 us"), launch={"small_memory_frac": 1})
    slow, ideal = (prices_of(setting_of(device=device))[0] for device in (late, IDEAL))
    for work, fixed_us in ((Work("attention", 0), 2 + 2 * 3 + 8), (Work("gate", 1), 2 + 3 + 2), (Work("head"), 2 + 3)):
        np.testing.assert_allclose(seconds(slow.of(work)) - seconds(ideal.of(work)), fixed_us * 1e-6, rtol=1e-9)


def test_prefill_attends_to_every_earlier_token() -> None:
    setting = setting_of(phase="prefill", tokens_per_device=8)
    got = seconds(prices_of(setting)[0].of(Work("attention", 0)))
    pairs = setting.batches.contexts.sum(axis=-1)
    model, device = setting.model, setting.cluster.device
    want = norm_s(8, H, "bf16", device) + attention_projections_s(8, model.attention, H, 1, "bf16", device)
    want = want + attention_prefill_s(8, pairs, model.attention, 1, "bf16", device)
    np.testing.assert_array_equal(got, want)


def test_prefill_makes_logits_of_one_position() -> None:
    prices, _ = prices_of(setting_of(phase="prefill", tokens_per_device=8, device=IDEAL))
    head = 8 * 4 * H * 2 + (H * 256 * 2 + 1 * (H + 256) * 2)
    np.testing.assert_allclose(seconds(prices.of(Work("head"))), head / BYTES_PER_S, rtol=1e-12)


def test_a_group_of_attention_tp_shares_the_vocabulary() -> None:
    # the logits of 2 x 4 tokens over half of the vocabulary; the last norm is that of the own tokens
    prices, _ = prices_of(setting_of(device=IDEAL, attention_tp=2))
    head = 4 * 4 * H * 2 + (H * 128 * 2 + 2 * 4 * (H + 128) * 2)
    np.testing.assert_allclose(seconds(prices.of(Work("head"))), head / BYTES_PER_S, rtol=1e-12)


@pytest.mark.parametrize("tp", [2, 4])
def test_a_group_of_attention_tp_works_on_all_its_tokens(tp: int) -> None:
    setting = setting_of(tiny_model(attention=gqa(n_heads=8)), attention_tp=tp)
    prices, _ = prices_of(setting)
    contexts = setting.batches.contexts.sum(axis=-1).reshape(3, -1, tp).sum(axis=-1)
    model, device = setting.model, setting.cluster.device
    want = norm_s(4 * tp, H, "bf16", device) + attention_projections_s(4 * tp, model.attention, H, tp, "bf16", device)
    want = want + attention_decode_s(4 * tp, contexts, model.attention, tp, "bf16", device)
    np.testing.assert_array_equal(seconds(prices.of(Work("attention", 0))), np.repeat(want, tp, axis=-1))
    # ring steps of 4 tokens of 128 bytes each
    step_s = 5e-6 + 4 * TOKEN_BYTES / INTRA
    for kind in ("gather", "scatter"):
        collective = ports(prices.of(Work(kind, 0)))
        assert collective.group_size == tp
        np.testing.assert_allclose(collective.send_s, np.full((3, 4), (tp - 1) * step_s), rtol=1e-12)
        np.testing.assert_array_equal(collective.send_s, collective.receive_s)
        assert collective.message_s is None


def test_without_attention_tp_there_are_no_collectives() -> None:
    assert "gather" not in prices_of(setting_of())[0].per_layer


def test_windowed_layers_read_a_clipped_context() -> None:
    model = tiny_model(n_layers=4, attention=gqa(window_tokens=3, windowed_every=2))
    setting = setting_of(model, device=IDEAL)
    prices, _ = prices_of(setting)
    assert prices.windowed_layers == {0, 2}
    contexts = setting.batches.contexts
    beyond = (contexts - np.minimum(contexts, 3)).sum(axis=-1)
    assert beyond.any()
    clipped_s = beyond * (2 * 2 * 16 * 2) / BYTES_PER_S
    full_s = seconds(prices.of(Work("attention", 1)))
    np.testing.assert_allclose(full_s - seconds(prices.of(Work("attention", 2))), clipped_s, rtol=1e-9, atol=1e-18)
    assert prices.of(Work("attention", 0)) is prices.of(Work("attention", 2))


def test_dense_and_shared_layers_are_whole_on_every_device() -> None:
    model = tiny_model(
        n_layers=3, first_moe_layer=1, dense_intermediate_size=48, dense_gated=False, shared_intermediate_size=40
    )
    setting = setting_of(model)
    prices, _ = prices_of(setting)
    device = setting.cluster.device
    shared_s = mlp_s(4, H, 40, True, "bf16", device)
    dense_s = norm_s(4, H, "bf16", device) + mlp_s(4, H, 48, False, "bf16", device)
    np.testing.assert_array_equal(seconds(prices.of(Work("shared", 1))), np.full((3, 4), shared_s))
    np.testing.assert_array_equal(seconds(prices.of(Work("mlp", 0))), np.full((3, 4), dense_s))
    assert prices.moe_row == {-1: 2, 0: 0, 1: 0, 2: 1}


@pytest.mark.parametrize("expert_tp", [1, 2])
def test_experts_cost_what_their_kernel_says(expert_tp: int) -> None:
    setting = setting_of(expert_tp=expert_tp)
    n_ranks = 4 // expert_tp
    placement = random_placement(2, 8, n_ranks, 11)
    schedule = ScheduleSpec(overlap="chunked", chunks=3)
    prices, _ = prices_of(setting, placement, schedule)
    reduction = reduced(setting, placement, schedule)
    shape = expert_shape(setting.model, expert_tp)
    for layer, step, chunk, device in np.ndindex(2, 3, 3, 4):
        part, rank = step * 3 + chunk, device // expert_tp
        tokens = reduction.slot_tokens[layer, part, placement.rank_of_slot[layer] == rank]
        summed = reduction.summed_tokens[layer, part, rank]
        want = grouped_gemm_moe_s(tokens, shape, setting.cluster.device, summed)
        assert seconds(prices.of(Work("experts", layer, chunk)))[step, device] == want


@pytest.mark.parametrize(("dedup", "tokens"), [("device", 64), ("none", 128)])
def test_experts_choose_tiles_by_the_tokens_that_arrive(dedup: DedupName, tokens: int) -> None:
    # vLLM takes tiles of 32 x 64 up to 64 tokens, larger ones above. 64 tokens visit two experts each.
    model = tiny_model(n_layers=1, n_experts=4, top_k=2)
    cluster = tiny_cluster(1, 1)
    cluster = replace(cluster, device=replace(cluster.device, kernels=find_kernels("h200-vllm")))
    setting = tiny_setting(model, cluster, trace_of([[[0] * 64, [1] * 64]], 4), steps=1, tokens_per_device=64)
    schedule = exchange(dedup=dedup)
    placement = Placement.from_slots([[0, 1, 2, 3]], 1, n_experts=4, name="one rank")
    summed = reduced(setting, placement, schedule).summed_tokens[0, 0, 0]
    shape = expert_shape(model)
    times = {n: grouped_gemm_moe_s([64, 64, 0, 0], shape, setting.cluster.device, summed, n) for n in (64, 128)}
    assert times[64] != times[128]
    prices, _ = prices_of(setting, placement, schedule)
    assert seconds(prices.of(Work("experts", 0, 0)))[0, 0] == times[tokens]


def test_fewer_distinct_experts_on_a_device_are_cheaper_in_decode() -> None:
    # All tokens select expert 0 or 1, as many each. One rank an expert: 4 tokens of one expert on each rank. Both
    # experts on both ranks: 2 + 2 tokens, and twice the weights to stream.
    model = tiny_model(n_layers=1, n_experts=4, top_k=1, hidden_size=1024, expert_intermediate_size=1024)
    trace = trace_of([[[0] * 32 + [1] * 32]], 4)
    setting = tiny_setting(model, tiny_cluster(1, 2, device=IDEAL), trace, steps=1, tokens_per_device=4)
    apart = Placement.from_slots([[0, 2, 1, 3]], 2, n_experts=4, name="apart")
    spread = Placement.from_slots([[0, 1, 2, 0, 1, 3]], 2, n_experts=4, name="spread")
    times = {}
    for placement in (apart, spread):
        counts = reduced(setting, placement, ScheduleSpec()).slot_tokens
        assert tokens_by_rank(placement, counts).sum(axis=-1).tolist() == [[[4, 4]]]
        times[placement.name] = seconds(prices_of(setting, placement)[0].of(Work("experts", 0, 0)))
    one_expert_s = 3 * 1024 * 1024 * 2 / BYTES_PER_S
    assert (times["apart"] >= one_expert_s).all()
    assert (times["spread"] >= 2 * one_expert_s).all()
    assert (times["spread"] > 1.8 * times["apart"]).all()


def test_dispatch_and_combine_on_one_node() -> None:
    setting = setting_of()
    prices, placement = prices_of(setting)
    tokens = reduced(setting, placement, ScheduleSpec()).ports
    for layer in (0, 1):
        there, back = (ports(prices.of(Work(kind, layer, 0))) for kind in ("dispatch", "combine"))
        np.testing.assert_allclose(there.send_s, 5e-6 + tokens.send_intra[layer] * TOKEN_BYTES / INTRA, rtol=1e-12)
        np.testing.assert_allclose(
            there.receive_s, 5e-6 + tokens.receive_intra[layer] * TOKEN_BYTES / INTRA, rtol=1e-12
        )
        np.testing.assert_array_equal(back.send_s, there.receive_s)
        np.testing.assert_array_equal(back.receive_s, there.send_s)
        assert (there.group_size, there.message_s) == (4, None)
        assert there.latency_s == pytest.approx(5e-6)


@pytest.mark.parametrize("dedup", ["none", "device", "node"])
def test_two_ports_work_at_once_between_nodes(dedup: str) -> None:
    setting = setting_of(n_nodes=2, devices_per_node=2)
    schedule = exchange(dedup=dedup)
    prices, placement = prices_of(setting, schedule=schedule)
    tokens = reduced(setting, placement, schedule).ports
    there = ports(prices.of(Work("dispatch", 1, 0)))
    inside_s, between_s = tokens.send_intra[1] * TOKEN_BYTES / INTRA, tokens.send_inter[1] * TOKEN_BYTES / INTER
    latency_s = 25e-6 if dedup == "node" else 20e-6  # both hops in turn where tokens are forwarded, else the slower
    np.testing.assert_allclose(there.send_s, latency_s + np.maximum(inside_s, between_s), rtol=1e-12)
    assert (between_s > inside_s).any()
    assert there.latency_s == pytest.approx(latency_s)


def test_wire_types_change_the_bytes_of_one_way() -> None:
    setting = setting_of()
    usual, _ = prices_of(setting)
    quantised, _ = prices_of(setting, schedule=exchange(dispatch_dtype="fp8", combine_dtype="fp32"))

    def bytes_s(prices: Prices, kind: str) -> NDArray[np.float64]:
        return ports(prices.of(Work(kind, 0, 0))).send_s - 5e-6

    np.testing.assert_allclose(bytes_s(quantised, "dispatch"), bytes_s(usual, "dispatch") / 2, rtol=1e-9)
    np.testing.assert_allclose(bytes_s(quantised, "combine"), bytes_s(usual, "combine") * 2, rtol=1e-9)


def test_chunks_share_the_tokens_of_a_step() -> None:
    setting = setting_of(n_nodes=2, devices_per_node=2)
    placement = even_placement(setting.model, 4)
    whole, _ = prices_of(setting, placement, exchange())
    parts, _ = prices_of(setting, placement, ScheduleSpec(overlap="chunked", chunks=2))
    for kind in ("dispatch", "combine"):
        chunks = [ports(parts.of(Work(kind, 1, chunk))) for chunk in (0, 1)]
        for name in ("send_s", "receive_s"):
            # the maximum over two ports makes the parts at least as long as the whole
            total_s = sum(getattr(chunk, name) - 20e-6 for chunk in chunks)
            assert (total_s >= getattr(ports(whole.of(Work(kind, 1, 0))), name) - 20e-6 - 1e-18).all()


def test_messages_of_each_pair_at_each_kind_of_port() -> None:
    setting = setting_of(n_nodes=2, devices_per_node=2)
    schedule = exchange(law="fifo", dedup="none")
    prices, placement = prices_of(setting, schedule=schedule)
    pairs = reduced(setting, placement, schedule).pairs
    assert pairs is not None
    there, back = (ports(prices.of(Work(kind, 1, 0))).message_s for kind in ("dispatch", "combine"))
    assert there is not None
    assert back is not None
    assert there.shape == (3, 2, 4, 4)
    for step, source, target in np.ndindex(3, 4, 4):
        size_bytes = pairs[1, step, source, target] * TOKEN_BYTES
        inside, other = source // 2 == target // 2, source != target
        assert there[step, 0, source, target] == pytest.approx(size_bytes / INTRA * (inside and other))
        assert there[step, 1, source, target] == pytest.approx(size_bytes / INTER * (not inside))
    np.testing.assert_array_equal(back, there.swapaxes(-1, -2))


@pytest.mark.parametrize("law", ["fifo", "maxmin"])
def test_laws_of_messages_cannot_forward(law: str) -> None:
    with pytest.raises(ScenarioError, match=f"law {law} needs dedup none or device; node forwarding has law port"):
        prices_of(setting_of(n_nodes=2, devices_per_node=2), schedule=exchange(law=law, dedup="node"))
    prices_of(setting_of(), schedule=exchange(law=law, dedup="node"))  # one node: nothing is forwarded


def test_laws_of_messages_need_pairs() -> None:
    setting = setting_of()
    placement = even_placement(setting.model, 4)
    without = reduced(setting, placement, ScheduleSpec())
    with pytest.raises(ScenarioError, match="law fifo needs every pair of devices"):
        price(setting, placement, without, ExchangeSpec(law="fifo"))


def test_tokens_by_rank_of_uneven_slots() -> None:
    # layer 0 has 2, 0 and 3 slots on the ranks, layer 1 has 1, 3 and 1
    placement = Placement(
        expert_of_slot=np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]),
        rank_of_slot=np.array([[0, 0, 2, 2, 2], [0, 1, 1, 1, 2]]),
        n_experts=5,
        n_ranks=3,
        name="uneven",
    )
    slot_tokens = np.array([[[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], [[11, 12, 13, 14, 15], [16, 17, 18, 19, 20]]])
    assert tokens_by_rank(placement, slot_tokens).tolist() == [
        [[[1, 2, 0], [0, 0, 0], [3, 4, 5]], [[6, 7, 0], [0, 0, 0], [8, 9, 10]]],
        [[[11, 0, 0], [12, 13, 14], [15, 0, 0]], [[16, 0, 0], [17, 18, 19], [20, 0, 0]]],
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_operation_of_a_program_has_a_price(policy: str) -> None:
    model = tiny_model(n_layers=3, first_moe_layer=1, dense_intermediate_size=48, shared_intermediate_size=40)
    setting = setting_of(model, attention_tp=2)
    moves = {"exchange": {"dedup": "none"}, "move": {"kind": "pull"}} if policy == "prefetch" else {}
    schedule = ScheduleSpec.model_validate({"overlap": policy, "chunks": 2} | moves)
    step = build_step(
        model,
        chunks=schedule.n_chunks,
        attention_tp=2,
        microbatched=policy in MICROBATCHED,
        split_attention=policy in SPLIT_ATTENTION,
        tiling=TILED.get(policy),
    )
    op_list = compile_program(POLICIES[policy], step)
    prices, placement = prices_of(setting, schedule=schedule)
    if policy in TILED:
        reduction = reduced(setting, placement, schedule)
        prices = tile_prices(prices, setting, reduction, schedule, TILED[policy])
    durations = prices.durations(op_list)
    for op, duration in zip(op_list.ops, durations, strict=True):
        assert isinstance(duration, ExchangeTime) == op.is_exchange
        times = [duration.send_s, duration.receive_s] if isinstance(duration, ExchangeTime) else [duration]
        least = 0 if policy in TILED else 1e-12  # a tile of a device that sends nothing takes no time
        assert all(time_s.shape == (3, 4) and (time_s >= least).all() for time_s in times)


def test_block_scaled_tokens_carry_a_scale_per_128_values() -> None:
    setting = setting_of()
    assert token_bytes(setting, "fp8_block") == H * (1 + 4 / 128)
    assert token_bytes(setting, "fp8") == H
    assert token_bytes(setting, None) == 2 * H
