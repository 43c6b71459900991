"""Metrics of small simulations: they add up, agree between executors, and match hand numbers."""

from dataclasses import replace

import numpy as np
import pytest

from placement.plan import Placement
from scenarios.schedule_specs import ExchangeSpec, ScheduleSpec
from scenarios.specs import MemorySpec
from sim import metrics as measure
from sim.durations import ExchangeTime
from sim.engine import replay
from sim.memory import device_memory
from sim.metrics import Execution
from sim.policies import POLICIES
from sim.program import Chunk, Layer, Step, Work, compile_program
from sim.setting import Setting
from sim.vector import execute
from tests.devices import link
from tests.small import (
    Measured,
    even_placement,
    measured,
    random_placement,
    random_trace,
    reduced,
    tiny_cluster,
    tiny_model,
    tiny_setting,
    trace_of,
)

RTOL = 1e-12
SCHEDULES = {
    "sequential": ScheduleSpec(),
    "chunked": ScheduleSpec(overlap="chunked", chunks=3),
    "fifo": ScheduleSpec(overlap="chunked", chunks=2, exchange=ExchangeSpec(law="fifo")),
    "forwarded": ScheduleSpec(overlap="chunked", chunks=2, exchange=ExchangeSpec(dedup="node")),
    "with host time": ScheduleSpec.model_validate({"step_overhead": "100 us"}),
}


def setting_of(n_nodes: int = 2, devices_per_node: int = 2, **fields: object) -> Setting:
    model = tiny_model(
        n_layers=3, first_moe_layer=1, dense_intermediate_size=48, shared_intermediate_size=40, hidden_size=1024
    )
    cluster = tiny_cluster(n_nodes, devices_per_node)
    return tiny_setting(model, cluster, random_trace(model), **({"tokens_per_device": 16} | fields))


def simulated(schedule: ScheduleSpec, **fields: object) -> Measured:
    return measured(setting_of(**fields), random_placement(2, 8, 4, 12), schedule)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_breakdown_adds_up_to_the_step_time(schedule: ScheduleSpec) -> None:
    result = simulated(schedule, attention_tp=2)
    assert sum(result.breakdown_s.values()) == pytest.approx(result.metrics["step_time_s"], rel=RTOL)
    assert min(result.breakdown_s.values()) >= 0
    kinds = {"attention", "gate", "shared", "mlp", "experts", "head", "transfer", "waiting"}
    assert set(result.breakdown_s) == kinds | ({"host"} if schedule.step_overhead else set())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_both_executors_give_the_same_metrics(schedule: ScheduleSpec) -> None:
    vector = simulated(schedule, attention_tp=2)
    event = simulated(schedule.model_copy(update={"executor": "event"}), attention_tp=2)
    assert event.metrics == pytest.approx(vector.metrics, rel=1e-9, abs=1e-12)
    assert event.breakdown_s == pytest.approx(vector.breakdown_s, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_lanes_are_busy_for_a_share_of_the_step(schedule: ScheduleSpec) -> None:
    metrics = simulated(schedule).metrics
    for lane in ("compute", "send", "receive"):
        assert 0 < metrics[f"busy_frac.{lane}"] <= 1
    assert 0 <= metrics["hidden_comm_frac"] <= 1


def test_nothing_is_hidden_in_a_sequence_and_something_by_chunks() -> None:
    assert simulated(SCHEDULES["sequential"]).metrics["hidden_comm_frac"] == pytest.approx(0, abs=1e-12)
    assert 0 < simulated(SCHEDULES["chunked"]).metrics["hidden_comm_frac"] <= 1


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_throughput_is_tokens_over_time(schedule: ScheduleSpec) -> None:
    result = simulated(schedule)
    total_s = result.execution.step_times_s.sum() + 3 * schedule.step_overhead
    metrics = result.metrics
    assert metrics["tokens_per_s"] == pytest.approx(3 * 4 * 16 / total_s, rel=RTOL)
    assert metrics["tokens_per_s_per_device"] == pytest.approx(metrics["tokens_per_s"] / 4, rel=RTOL)
    assert metrics["step_time_s"] == pytest.approx(total_s / 3, rel=RTOL)
    assert metrics["step_time_s.p50"] <= metrics["step_time_s.p99"]


def test_steps_of_the_control_plane_follow_each_other() -> None:
    assert replay([1.0, 2.5, 0.25], 0.5).tolist() == [0.0, 1.5, 4.5, 5.25]
    assert replay([], 0.5).tolist() == [0.0]


def by_hand(policy: str) -> Execution:
    """One layer on two devices, one step; seconds are small integers.

    attention 2 and 4, gate 1 and 1; dispatch, experts and combine in as many chunks as there are letters in `policy`.
    """
    chunks = 2 if policy == "chunked" else 1
    parts = tuple(Chunk(Work("dispatch", 0, c), Work("experts", 0, c), Work("combine", 0, c)) for c in range(chunks))
    layer = Layer(attention=Work("attention", 0), gate=Work("gate", 0), chunks=parts)
    op_list = compile_program(POLICIES[policy], Step(layers=(layer,), head=Work("head")))
    times = {"attention": [2.0, 4.0], "gate": [1.0, 1.0], "experts": [6.0 / chunks, 2.0 / chunks], "head": [1.0, 1.0]}
    ports = {"dispatch": ([1.0, 2.0], [2.0, 1.0]), "combine": ([2.0, 1.0], [1.0, 2.0])}
    durations = []
    for op in op_list.ops:
        if op.is_exchange:
            send_s, receive_s = (np.array([times_s]) / chunks for times_s in ports[op.work.kind])
            durations.append(ExchangeTime(send_s=send_s, receive_s=receive_s, group_size=2))
        else:
            durations.append(np.array([times[op.work.kind]]))
    return Execution(op_list=op_list, durations=durations, finished=execute(op_list, durations))


def test_times_of_a_sequence_by_hand() -> None:
    # Devices are ready at 3 and 5; the last byte leaves at max(3 + 1, 5 + 2) = 7, which ends the dispatch on both.
    # Experts end at 13 and 9. The combine opens at 9: sends end at 15 and 10, so it ends at 15 on both; the head at 16.
    execution = by_hand("none")
    assert execution.step_times_s.tolist() == [16.0]
    metrics = measure.time_metrics(execution, np.array([0.0, 20.0]), setting_of(), 4.0)
    assert metrics["step_time_s"] == 20.0
    assert metrics["busy_frac.compute"] == pytest.approx((10 + 8) / 2 / 16)  # 2+1+6+1 and 4+1+2+1
    assert metrics["busy_frac.send"] == pytest.approx((3 + 3) / 2 / 16)
    assert metrics["hidden_comm_frac"] == 0
    assert metrics["tokens_per_s"] == 4 * 16 / 20.0
    # device 0 idles 6 of which its own ports need 2 + 2, device 1 idles 8 of which 2 + 2
    breakdown_s = measure.breakdown_s(execution, 4.0)
    assert breakdown_s == {
        "attention": 3.0,
        "gate": 1.0,
        "experts": 4.0,
        "head": 1.0,
        "transfer": 4.0,
        "waiting": 3.0,
        "host": 4.0,
    }


def test_hidden_time_of_chunks_by_hand() -> None:
    # Halves: sends of the dispatches end at 3.5, 4 and 6, 7, so the first ends at 6 and the second at 7 on both.
    # Experts: 6-9-12 on device 0, 6-7-8 on device 1. First combine: open at 7, device 0 sends 9-10, device 1 7-7.5;
    # it ends at 10 on both. Second: device 0 sends 12-13, device 1 8-8.5; it ends at 13 on both. Head to 14.
    execution = by_hand("chunked")
    assert execution.step_times_s.tolist() == [14.0]
    # exchanges cover 3-7, 9-10, 12-13 on device 0 and 5-13 on device 1; the compute lanes idle 14 - 10 and 14 - 8
    metrics = measure.time_metrics(execution, np.array([0.0, 14.0]), setting_of(), 0.0)
    assert metrics["hidden_comm_frac"] == pytest.approx(1 - (4 + 6) / (6 + 8))


def one_token_each(ids: list[list[int]], n_nodes: int = 2) -> tuple[Setting, Placement]:
    """Four devices, one token each that select ids[device][k] of 4 experts, expert e on device e."""
    model = tiny_model(n_layers=1, n_experts=4, top_k=len(ids[0]))
    trace = trace_of([np.transpose(ids)], 4, [1] * 4)
    setting = tiny_setting(model, tiny_cluster(n_nodes, 4 // n_nodes), trace, steps=1, tokens_per_device=1)
    in_order = replace(setting.batches, tokens=np.arange(4).reshape(1, 4, 1))
    return replace(setting, batches=in_order), even_placement(model, 4)


@pytest.mark.parametrize(
    ("dedup", "node_frac"),
    # 8 copies: 0-0 0-1 1-0 1-2 2-3 2-2 3-0 3-1; three of them to the other node. Per node 5 visits, two of them away:
    # device 1 has an expert in both nodes, device 3 both experts in node 0, devices 0 and 2 stay.
    [("none", 3 / 8), ("device", 3 / 8), ("node", 2 / 5)],
)
def test_crossing_shares_by_hand(dedup: str, node_frac: float) -> None:
    setting, placement = one_token_each([[0, 1], [0, 2], [3, 2], [0, 1]])
    schedule = ScheduleSpec(exchange=ExchangeSpec.model_validate({"dedup": dedup}))
    metrics = measured(setting, placement, schedule).metrics
    assert metrics["cross_device_frac"] == pytest.approx(1 - 2 / 8)
    assert metrics["cross_node_frac"] == pytest.approx(node_frac)
    assert metrics["devices_per_token"] == 2
    # there and back, 128 bytes a token; inside 0-1, 1-0, 2-3, and where forwarded 3-2 for 1 and 1-0 for 3
    inside = {"none": 3, "device": 3, "node": 5}[dedup]
    assert metrics["bytes.nvlink"] == inside * 2 * 128
    assert metrics["bytes.infiniband"] == {"none": 3, "device": 3, "node": 2}[dedup] * 2 * 128


def test_shares_on_one_node() -> None:
    setting, placement = one_token_each([[0, 1], [0, 2], [3, 2], [0, 1]], n_nodes=1)
    metrics = measured(setting, placement).metrics
    assert metrics["cross_device_frac"] == pytest.approx(1 - 2 / 8)
    assert metrics["cross_node_frac"] == 0
    assert "bytes.infiniband" not in metrics


def test_bytes_of_one_kind_of_link_are_counted_together() -> None:
    setting, placement = one_token_each([[0, 1], [0, 2], [3, 2], [0, 1]])
    cluster = tiny_cluster(2, 2, inter=link("10 GB/s"))  # the same kind inside and between nodes
    metrics = measured(replace(setting, cluster=cluster), placement).metrics
    assert metrics["bytes.nvlink"] == (3 + 3) * 2 * 128


def test_traffic_between_devices_by_hand() -> None:
    setting, placement = one_token_each([[0, 1], [0, 2], [3, 2], [0, 1]])
    schedule = ScheduleSpec(exchange=ExchangeSpec(combine_dtype="fp32"))
    there = 128 * np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
    got = measure.traffic_bytes(setting, reduced(setting, placement, schedule), schedule)
    assert got.tolist() == (there + 2 * there.T).tolist()


def test_load_metrics_by_hand() -> None:
    setting, placement = one_token_each([[0, 1], [0, 2], [3, 2], [0, 1]])
    # tokens of the experts: 3, 2, 2, 1
    reduction = reduced(setting, placement, ScheduleSpec())
    metrics = measure.load_metrics(setting, placement, reduction)
    assert metrics["load_imbalance"] == metrics["load_imbalance.worst_layer"] == 3 / 2
    assert metrics["load_imbalance.fit"] == 3 / 2
    assert metrics["active_experts_per_device"] == 1


def test_imbalance_is_taken_over_whole_steps() -> None:
    setting, placement = setting_of(), random_placement(2, 8, 4, 12)
    whole, parts = (
        measure.step_imbalance(placement, reduced(setting, placement, schedule))
        for schedule in (SCHEDULES["sequential"], SCHEDULES["chunked"])
    )
    assert whole.shape == (2, 3)
    np.testing.assert_allclose(parts, whole, rtol=RTOL)


def test_memory_metrics_are_those_of_the_fullest_device() -> None:
    setting = setting_of()
    memory = device_memory(setting, random_placement(2, 8, 4, 12), MemorySpec())
    metrics = measure.memory_metrics(memory)
    assert metrics["memory_bytes.peak"] == memory.used_bytes.max() > memory.used_bytes.min()
    assert metrics["memory_bytes.usable"] == memory.usable_bytes
