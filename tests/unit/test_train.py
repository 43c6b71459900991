"""Training steps by hand: FLOP of backward passes, rings, pieces, memory, MFU, and FSMoE's windows."""

from dataclasses import replace

import numpy as np
import pytest

from hwmodels.cluster import build_cluster
from hwmodels.gemm import gemm_s
from hwmodels.gradients import CORE_BACKWARD, expert_weight_gradients_s, product_gradients_s
from hwmodels.links import all_reduce_s, reduce_scatter_s
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from placement.plan import Placement
from scenarios.cluster_specs import ClusterSpec
from scenarios.errors import HardwareError, MemoryInfeasible, ScenarioError
from scenarios.schedule_specs import TRAINED, ExchangeSpec, ScheduleSpec
from scenarios.specs import MemorySpec
from scenarios.training_specs import OptimizerSpec, TrainingSpec
from sim.durations import Duration, ExchangeTime
from sim.filling import idle_windows_s
from sim.gradient_sums import Group, buckets_of, pieces_of, ring_s, sum_s
from sim.laws import port
from sim.memory import check_memory, device_memory
from sim.metrics import training_metrics
from sim.optimizer import divided_parameters, held_parameters, optimizer_prices
from sim.policies import TRAINING
from sim.policies.gradients import FILL
from sim.program import OpList, Work, compile_program
from sim.run import execute_schedule
from sim.session import reduced
from sim.setting import Setting, build_step
from sim.train import check_training
from sim.training import training_step
from sim.training_memory import activation_bytes, row_values, token_values
from sim.vector import execute
from tests.devices import round_gpu
from tests.small import even_placement, gqa, random_trace, tiny_cluster, tiny_model, tiny_setting

ORDERS = ({"order": "after"}, {"order": "overlapped"}, {"order": "priority", "partition": "4 kB"}, {"order": "fill"})


def setting_of(spec: TrainingSpec | None = None, **fields: object) -> Setting:
    model = fields.pop("model", None) or tiny_model()
    cluster = fields.pop("cluster", None) or tiny_cluster()
    load = {"phase": "train", "tokens_per_device": 32} | fields
    setting = tiny_setting(model, cluster, random_trace(model), **load)  # type: ignore[arg-type]
    return replace(setting, training=spec or TrainingSpec())


def even(setting: Setting) -> Placement:
    return even_placement(setting.model, setting.layout.n_ranks)


# --- prices


def test_gradients_of_a_product_take_twice_its_time_where_computing_binds() -> None:
    """Forward m n k, backward m k n and k n m multiplications: 1 to 2 when all sizes are large and alike."""
    device = round_gpu()
    forward_s = gemm_s(8192, 8192, 8192, "bf16", device)
    assert product_gradients_s(np.array([8192]), 8192, 8192, "bf16", device)[0] == pytest.approx(
        2 * forward_s, rel=1e-9
    )


def test_gradients_of_experts_take_twice_their_time_where_computing_binds() -> None:
    """Uniform routing, 65,536 tokens for each of 4 experts: what is not products counts little."""
    model = tiny_model(hidden_size=8192, expert_intermediate_size=14336)
    device, shape, counts = round_gpu(), expert_shape(model), np.full((1, 4), 65536)
    forward_s = grouped_gemm_moe_s(counts, shape, device)
    inputs_s = grouped_gemm_moe_s(counts, replace(shape, transposed=True), device)
    weights_s = expert_weight_gradients_s(counts, shape, device, "bf16")
    assert inputs_s == pytest.approx(forward_s, rel=0.05)
    assert (inputs_s + weights_s) / forward_s == pytest.approx(2, rel=0.05)


def test_gradients_of_idle_experts_are_written_all_the_same() -> None:
    shape, device = expert_shape(tiny_model(hidden_size=4096, expert_intermediate_size=14336)), round_gpu()
    none_s = expert_weight_gradients_s(np.zeros((1, 4), np.int64), shape, device, "fp32")[0]
    written_s = 4 * shape.weight_bytes * 2 / (0.5 * device.memory_bytes_per_s)  # fp32 is twice bf16; weight_frac 0.5
    assert none_s == pytest.approx(written_s + 2 * device.kernels.launch().kernel_s)


def test_the_core_of_attention_backward_against_a_published_trace() -> None:
    """DeepSeek's training profile (profile-data, train.json): 1.24 ms forward, 3.78 ms backward on an H800."""
    assert pytest.approx(3.78 / 1.24, rel=0.06) == CORE_BACKWARD


def test_a_host_core_has_no_law_of_gradients() -> None:
    with pytest.raises(HardwareError, match="no gradients"):
        shape = expert_shape(tiny_model(weight_dtype="fp32"))
        expert_weight_gradients_s(
            np.ones((1, 2), np.int64), shape, build_cluster(ClusterSpec(node="zen4-core-1")).device, "bf16"
        )


def test_microbatches_begin_with_a_sequence() -> None:
    """Sequences of 16 tokens: 24 tokens are one and a half, from the first token on, in every step."""
    setting = setting_of(tokens_per_device=24, steps=5)
    assert (setting.batches.contexts == np.tile(1 + np.arange(24) % 16, (5, 4, 1))).all()


# --- sums of gradients


def test_an_all_reduce_inside_a_node_is_a_ring() -> None:
    setting = setting_of()
    link, size = setting.cluster.intra, np.full(4, 1e6)
    assert ring_s(setting, "all-reduce", size, Group(4, 4)) == pytest.approx(all_reduce_s(1e6, 4, link))
    assert ring_s(setting, "reduce-scatter", size, Group(4, 4)) == pytest.approx(reduce_scatter_s(1e6, 4, link))


def test_rings_between_nodes_share_the_ports_of_a_node() -> None:
    """8 devices in 2 nodes: each sends 2 * 7/8 of its bytes, a quarter of them through its network port (8 GB/s)."""
    setting = setting_of(cluster=tiny_cluster(2, 4))
    inside_s, between_s = 1.75e6 / 80e9, 1.75e6 / 4 / 8e9
    steps_s = 2 * (3 * 5e-6 + 1 * 20e-6)
    assert ring_s(setting, "all-reduce", np.full(8, 1e6), Group(8, 4))[0] == pytest.approx(
        max(inside_s, between_s) + steps_s
    )


def test_who_sums_what() -> None:
    """Two layers of 8 experts without copies: attention and router of all devices, embedding and head."""
    model = tiny_model()
    setting = setting_of(model=model)
    buckets = buckets_of(setting, even(setting))
    assert set(buckets) == {("reduce", 0), ("reduce", 1), ("reduce", -1), ("reduce.head", -1)}
    attention, router = 64 * 16 * 2 * (4 + 2), 8 * 64
    assert [share.parameters[0] for share in buckets["reduce", 0]] == [attention, router]
    assert {share.group for bucket in buckets.values() for share in bucket} == {Group(4, 4)}
    assert pieces_of(setting, buckets, 5000)["reduce", 0] == -(-2 * (attention + router) // 5000)
    assert pieces_of(setting, buckets, None)["reduce", 0] == 1


def test_copies_of_experts_are_summed_and_replicas_of_the_cluster_too() -> None:
    """Expert 0 lies on ranks 0 and 3, the others on one rank each."""
    model = tiny_model()
    placement = Placement(
        expert_of_slot=np.tile([0, 1, 2, 3, 4, 5, 6, 7, 0], (2, 1)),
        rank_of_slot=np.tile([0, 0, 1, 1, 2, 2, 3, 3, 3], (2, 1)),
        n_experts=8,
        n_ranks=4,
        name="one copy",
    )
    one = 3 * 64 * 32
    setting = setting_of()
    (share,) = buckets_of(setting, placement)["reduce.experts", 0]
    assert share.parameters.tolist() == [one, 0, 0, one]
    assert share.group == Group(2, 2)
    twice = setting_of(TrainingSpec(replicas=3))
    by_group = {share.group: share.parameters.tolist() for share in buckets_of(twice, placement)["reduce.experts", 0]}
    assert by_group == {Group(6, 1): [one, 0, 0, one], Group(3, 1): [one, 2 * one, 2 * one, 2 * one]}
    assert buckets_of(twice, placement)["reduce", -1][0].group == Group(12, 4)
    assert model.n_experts == 8


def test_attention_in_tensor_parallel_groups_is_summed_over_fewer_devices() -> None:
    setting = setting_of(attention_tp=2)
    attention, others = buckets_of(setting, even(setting))["reduce", 0]
    assert (attention.group, others.group) == (Group(2, 2), Group(4, 4))
    assert attention.parameters[0] == 64 * 16 * 2 * (4 + 2) / 2


def test_replicas_need_a_network() -> None:
    setting = setting_of(TrainingSpec(replicas=2), cluster=tiny_cluster(inter=None))
    with pytest.raises(ScenarioError, match="no network"):
        sum_s(setting, buckets_of(setting, even(setting))["reduce", 0])


# --- memory


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_states_by_zero_stage(zero: int) -> None:
    """ZeRO, figure 1: (2 + 2 + 12) bytes a parameter, of which 12, 14 or 16 are divided among 4 devices."""
    setting = setting_of(TrainingSpec(zero=zero))  # type: ignore[arg-type]
    placement = even(setting)
    memory = device_memory(setting, placement, MemorySpec())
    held = held_parameters(setting, placement)
    dense, experts = held.others[0], held.experts[0]
    assert dense == 2 * 64 * 16 * 2 * (4 + 2) + 2 * 8 * 64 + 2 * 256 * 64
    assert experts == 2 * 2 * 3 * 64 * 32
    assert memory.training is not None
    divided = [1, 4, 4, 4][zero], [1, 1, 4, 4][zero], [1, 1, 1, 4][zero]
    assert memory.training.optimizer_bytes[0] == pytest.approx(12 * (experts + dense / divided[0]))
    assert memory.training.gradient_bytes[0] == pytest.approx(2 * (experts + dense / divided[1]))
    assert memory.other_weight_bytes == pytest.approx(2 * dense / divided[2])
    assert memory.expert_bytes[0] == 2 * experts
    assert memory.kv_bytes == 0
    parts = [memory.expert_bytes, memory.training.total_bytes]
    assert memory.used_bytes[0] == pytest.approx(sum(part[0] for part in parts) + memory.other_weight_bytes)


def test_replicas_divide_states_of_experts() -> None:
    setting = setting_of(TrainingSpec(zero=1, replicas=2))
    held = held_parameters(setting, even(setting))
    kept = divided_parameters(held, buckets_of(setting, even(setting)))
    assert kept.experts[0] == held.experts[0] / 2
    assert kept.others[0] == pytest.approx(held.others[0] / 8)


def test_values_of_a_dense_layer_are_those_of_korthikanti() -> None:
    """arXiv 2205.05198, equation 2 without attention's scores: 34 h bytes, of which 2 h are masks of dropout."""
    h = 1024
    model = tiny_model(
        hidden_size=h,
        attention=gqa(n_heads=16, n_kv_heads=16, head_dim=64),
        n_layers=3,
        moe_layer_list=[1],
        dense_intermediate_size=4 * h,
        dense_gated=False,
    )
    assert 2 * token_values(model, False, "none") == 34 * h - 2 * h
    assert 2 * token_values(model, False, "selective") == 32 * h - 2 * (2 * h + 4 * h)


def test_values_of_rows_are_those_of_megascale_moe() -> None:
    """arXiv 2505.11432: the terms with k are 2 k + 3 k f of h; f is the expert's size over h."""
    model = tiny_model(hidden_size=1024, expert_intermediate_size=3584)
    assert row_values(model, "none", 1) == (2 + 3 * 3.5) * 1024
    assert row_values(model, "selective", 1) == (2 + 2 * 3.5) * 1024
    assert row_values(model, "none", 2) == (2 + 3 * 3.5 / 2) * 1024


def test_activations_by_hand() -> None:
    """32 tokens a device, of which 64 rows come to each rank of balanced experts on average; 4 bytes of fp32 logits."""
    fields = {"steps": 1, "tokens_per_device": 32}
    whole, full = (setting_of(TrainingSpec(recompute=name), **fields) for name in ("none", "full"))  # type: ignore[arg-type]
    token = 2 * (4 * 64 + 2 * 64 + 2 * 2 * 16) + 4 * (4 + 8)
    row = 2 * (2 * 64 + 3 * 32)
    logits = 32 * (4 * 256 + 2 * 64)
    kept, working = activation_bytes(whole, even(whole))
    assert kept.mean() == pytest.approx(2 * (32 * token + 64 * row))
    assert working == pytest.approx(logits)
    kept, fullest = activation_bytes(full, even(full))
    assert kept == pytest.approx(2 * 32 * 64 * 2)
    assert fullest.min() >= logits
    assert fullest.max() <= 32 * token + 4 * 64 * row


def test_what_does_not_fit_names_the_levers() -> None:
    setting = setting_of()
    placement = even(setting)
    with pytest.raises(MemoryInfeasible, match=r"optimizer .* activations .* training.zero 1, training.recompute full"):
        check_memory(device_memory(setting, placement, MemorySpec(reserve=0.999999)), setting, placement)


# --- whole steps


@pytest.mark.parametrize("overlap", TRAINED)
@pytest.mark.parametrize("gradients", ORDERS, ids=lambda one: one["order"])
def test_executors_agree_and_parts_add_up(overlap: str, gradients: dict[str, str]) -> None:
    setting = setting_of(TrainingSpec(recompute="full", zero=1))
    placement = even(setting)
    schedule = ScheduleSpec.model_validate({"overlap": overlap, "gradients": gradients})
    reduction = reduced(setting, placement, schedule)
    runs = [
        execute_schedule(setting, placement, reduction, schedule.model_copy(update={"executor": executor}))
        for executor in ("vector", "event")
    ]
    np.testing.assert_allclose(runs[0].finished.end_s, runs[1].finished.end_s, rtol=1e-9)
    metrics = training_metrics(runs[0], setting, reduction, 0.0)
    parts = [metrics[name] for name in ("forward_s", "backward_s", "reduction_s", "update_s")]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(runs[0].step_times_s.mean())


def step_s(gradients: dict[str, str], overlap: str = "none") -> float:
    setting = setting_of(tokens_per_device=64, steps=1, cluster=tiny_cluster(2, 4))
    schedule = ScheduleSpec.model_validate({"overlap": overlap, "gradients": gradients})
    placement = even(setting)
    return float(
        execute_schedule(setting, placement, reduced(setting, placement, schedule), schedule).step_times_s.mean()
    )


@pytest.mark.parametrize("overlap", TRAINED)
def test_filling_gaps_is_never_slower_than_all_sums_after(overlap: str) -> None:
    assert step_s({"order": "fill"}, overlap) <= step_s({"order": "after"}, overlap) * (1 + 1e-9)


def test_mfu_by_hand() -> None:
    """3 x 2 FLOP a weight and token, and attention: 4 heads of 16 values, scores and sums, over the attended pairs."""
    setting = setting_of(steps=1)
    placement, schedule = even(setting), ScheduleSpec()
    reduction = reduced(setting, placement, schedule)
    execution = execute_schedule(setting, placement, reduction, schedule)
    n_tokens = 4 * 32
    weights = 2 * (64 * 16 * 2 * (4 + 2) + 8 * 64 + 2 * 3 * 64 * 32) + 256 * 64
    pairs = 2 * float(setting.batches.contexts.sum())
    flop = 3 * (2 * n_tokens * weights + 4 * 4 * 16 * pairs)
    peak = 4 * setting.cluster.device.peak_flop_per_s("bf16")
    got = training_metrics(execution, setting, reduction, 1e-3)["mfu"]
    assert got == pytest.approx(flop / peak / (execution.step_times_s.mean() + 1e-3))


def test_a_step_that_does_not_train_has_no_metrics_of_training() -> None:
    setting = setting_of(phase="prefill")
    placement, schedule = even(setting), ScheduleSpec()
    reduction = reduced(setting, placement, schedule)
    assert training_metrics(execute_schedule(setting, placement, reduction, schedule), setting, reduction, 0.0) == {}


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"overlap": "two-batch"}, "two-batch has no backward pass"),
        ({"overlap": "tiles"}, "tiles has no backward pass"),
        ({"move": {"kind": "shadow"}, "exchange": {"dedup": "none"}}, "schedule.move"),
        ({"payload": {"rate": 0.5}, "exchange": {"dedup": "none"}}, "schedule.payload"),
    ],
)
def test_schedules_without_a_backward_pass_are_refused(schedule: dict[str, object], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        check_training(ScheduleSpec.model_validate(schedule), tiny_model())


def test_weights_that_are_not_trained_are_refused() -> None:
    with pytest.raises(ScenarioError, match="mxfp4 are not trained"):
        check_training(ScheduleSpec(), tiny_model(expert_dtype="mxfp4"))


# --- FSMoE (arXiv 2501.10714, section 5): one layer in r chunks, gradients between the last dispatch and the combines


def fsmoe_layer(r: int) -> OpList:
    """The backward pass of one layer alone, with the pieces of order fill."""
    forward = build_step(
        tiny_model(n_layers=1), chunks=r, attention_tp=1, exchange=ExchangeSpec.model_validate({"algorithm": "sliced"})
    )
    return compile_program(
        TRAINING["chunked", "fill"], training_step(forward, {("reduce.head", -1): 1}, TrainingSpec())
    )


def fsmoe_durations(op_list: OpList, times: dict[str, np.ndarray], piece_s: np.ndarray) -> list[Duration]:
    """Times of the layer's backward works; the first piece takes `piece_s`, all else no time."""
    durations: list[Duration] = []
    for op in op_list.ops:
        time_s = times.get(op.work.kind, np.zeros_like(piece_s))[:, None]
        if op.work.kind == FILL and op.work.chunk == 0:
            time_s = piece_s[:, None]
        durations.append(ExchangeTime(send_s=time_s, receive_s=time_s, group_size=1) if op.is_exchange else time_s)
    return durations


def drawn(r: int) -> dict[str, np.ndarray]:
    a2a, ag, experts = np.random.default_rng(r).lognormal(0, 1, (3, 1000))
    kinds = {"dispatch": a2a, "combine": a2a, "forward": ag, "collect": ag, "experts": experts}
    return {f"{kind}.backward": times for kind, times in kinds.items()}


@pytest.mark.parametrize("r", [1, 2, 4])
def test_a_layer_with_gradients_meets_the_cases_of_fsmoe(r: int) -> None:
    """Case 1, 2 r t_a2a + t_gar, where gradients exceed what is idle; else the layer takes no longer than without."""
    op_list, times = fsmoe_layer(r), drawn(r)
    a2a, ag, experts = (times[f"{kind}.backward"] for kind in ("dispatch", "forward", "experts"))
    without = np.maximum.reduce(
        [2 * a2a + 2 * ag + r * experts, 2 * r * a2a + 2 * ag, 2 * a2a + 2 * r * ag]
    )  # cases 2, 3 and 4
    gar = np.random.default_rng(99).lognormal(0, 1.5, 1000)
    end_s = execute(op_list, fsmoe_durations(op_list, times, gar)).end_s[-1, :, 0]
    want = np.maximum(without, 2 * r * a2a + gar)
    case_3 = (2 * r * a2a + 2 * ag >= without * (1 - 1e-12)) & (r > 1)
    np.testing.assert_allclose(end_s[~case_3], want[~case_3], rtol=1e-9)
    assert (end_s[case_3] >= want[case_3] * (1 - 1e-9)).all()


@pytest.mark.parametrize("r", [1, 2, 4])
def test_windows_add_up_to_those_of_fsmoe(r: int) -> None:
    """Idle time of the ports, section 5: r e + ag + rs - 2 (r - 1) a; ag + rs; r (ag + rs) - 2 (r - 1) a."""
    op_list, times = fsmoe_layer(r), drawn(r)
    a2a, ag, experts = (times[f"{kind}.backward"] for kind in ("dispatch", "forward", "experts"))
    for place in range(20):
        one = {kind: values[place : place + 1] for kind, values in times.items()}
        windows = idle_windows_s(op_list, fsmoe_durations(op_list, one, np.zeros(1)), port)
        a, g, e = a2a[place], ag[place], experts[place]
        q1, q2, q3 = a > g, r * e > 2 * (r - 1) * a, r * e > (r - 1) * 2 * g
        case_2 = r * e + 2 * g - 2 * (r - 1) * a
        want = case_2 if (q1 and q2) or (not q1 and q3) else 2 * g if q1 else 2 * r * g - 2 * (r - 1) * a
        assert sum(windows) == pytest.approx(want)


# --- update and weights


def test_updates_by_the_host_cost_copies_and_its_memory() -> None:
    """A node's host serves 8 devices; 28 bytes a parameter go through its DRAM, 4 over the link."""
    cluster = build_cluster(ClusterSpec(node="h100-sxm-8"))
    setting = setting_of(TrainingSpec(optimizer=OptimizerSpec(offload="all")), cluster=cluster, steps=1)
    placement = even(setting)
    times = optimizer_prices(setting, placement, buckets_of(setting, placement))[Work("update")]
    assert isinstance(times, np.ndarray)
    held = held_parameters(setting, placement)
    count = held.experts[0] + held.others[0]
    assert cluster.host is not None
    assert cluster.host_link is not None
    link_s = 4 * count / cluster.host_link.effective_bytes_per_s
    dram_s = 28 * count / (cluster.host.dram_bytes_per_s.value / 8)
    launch_s = cluster.device.kernels.launch().kernel_s
    assert times[0, 0] == pytest.approx(link_s + dram_s + launch_s)


def test_divided_weights_come_a_layer_ahead() -> None:
    """Stage 3: the weights of a layer are asked for before the layer below begins, in both passes."""
    setting = setting_of(TrainingSpec(zero=3))
    placement, schedule = even(setting), ScheduleSpec()
    ops = execute_schedule(setting, placement, reduced(setting, placement, schedule), schedule).op_list.ops
    works = [op.work for op in ops]
    assert works.index(Work("weights", 1)) < works.index(Work("attention", 0))
    assert works.index(Work("weights.backward", 0)) < works.index(Work("attention.backward", 1))
