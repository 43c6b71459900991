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
from scenarios.errors import HardwareError, ScenarioError
from scenarios.schedule_specs import TRAINED, ScheduleSpec
from scenarios.training_specs import OptimizerSpec, TrainingSpec
from sim.gradient_sums import Group, buckets_of, pieces_of, ring_s, sum_s
from sim.metrics import training_metrics
from sim.optimizer import held_parameters, optimizer_prices
from sim.program import Work
from sim.run import execute_schedule
from sim.session import reduced
from sim.training_program import check_training
from tests.devices import round_gpu
from tests.small import tiny_cluster, tiny_model
from tests.training import even, setting_of

ORDERS = ({"order": "after"}, {"order": "overlapped"}, {"order": "priority", "partition": "4 kB"}, {"order": "fill"})


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
    with pytest.raises(ScenarioError, match=r"memory\.offload"):
        check_training(ScheduleSpec(), tiny_model(), offloads=True)
    with pytest.raises(ScenarioError, match="mxfp4 are not trained"):
        check_training(ScheduleSpec(), tiny_model(expert_dtype="mxfp4"))


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
