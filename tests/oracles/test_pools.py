"""Experts on devices of their own: the paper's closed form, two pools of different sizes written out, and bounds."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from hwmodels.cluster import Cluster
from placement.layout import ExpertLayout
from scenarios.errors import MemoryInfeasible, PlacementError, ScenarioError
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ExchangeSpec, ScheduleSpec
from scenarios.specs import MemorySpec
from sim.durations import Duration, ExchangeTime
from sim.forward import build_step
from sim.memory import check_memory, device_memory, fullest, pool_memories
from sim.metrics import breakdown_s, load_metrics, time_metrics, traffic_metrics
from sim.policies import POLICIES
from sim.pool_pricing import check_pools
from sim.pools import where_it_ran
from sim.priced_steps import execute_schedule
from sim.program import OpList, compile_program
from sim.session import placement_problem, reduced
from sim.setting import Setting
from sim.vector import execute
from tests.small import even_placement, gqa, random_trace, tiny_cluster, tiny_model, tiny_setting


def program(n_layers: int, m: int) -> OpList:
    model = tiny_model(n_layers=n_layers)
    step = build_step(model, chunks=m, attention_tp=1, microbatched=True)
    return compile_program(POLICIES["ping-pong"], step)


def alike_s(n_layers: int, m: int, attention_s: float, experts_s: float, crossing_s: float) -> float:
    """Time of a step whose devices are all alike; gate and head take no time."""
    op_list = program(n_layers, m)
    crossing = ExchangeTime(send_s=np.full(3, crossing_s), receive_s=np.full(3, crossing_s), group_size=3)
    times: dict[str, Duration] = {
        "attention": np.full(3, attention_s),
        "experts": np.full(3, experts_s),
        "gate": np.zeros(3),
        "head": np.zeros(3),
        "dispatch": crossing,
        "combine": crossing,
    }
    return float(execute(op_list, [times[op.work.kind] for op in op_list.ops]).end_s.max())


@pytest.mark.parametrize(("n_layers", "m"), list(product((1, 2, 5), (1, 2, 3, 4, 6))))
@pytest.mark.parametrize("attention_s", [2.0, 3.0, 4.0])
def test_with_enough_microbatches_a_step_takes_the_papers_time(n_layers: int, m: int, attention_s: float) -> None:
    """T = T_a + T_e + 2 T_c + T_f (m L - 1) where T_c < T_f and m T_f >= T_a + T_e + 2 T_c (arXiv 2504.02263, eq. 2-5).

    The paper has T_a = T_e = T_f, where the last is m >= 2 (1 + T_c / T_f).
    """
    experts_s, crossing_s = 3.0, 0.75
    slowest = max(attention_s, experts_s)
    formula = attention_s + experts_s + 2 * crossing_s + slowest * (m * n_layers - 1)
    got = alike_s(n_layers, m, attention_s, experts_s, crossing_s)
    if m * slowest >= attention_s + experts_s + 2 * crossing_s or n_layers == 1:
        assert got == pytest.approx(formula, rel=1e-12)
    else:
        assert got > formula * (1 + 1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.6, 0.9])
def test_the_rule_for_microbatches_is_where_a_step_stops_growing_beyond_its_work(ratio: float) -> None:
    needed = int(np.ceil(2 * (1 + ratio) - 1e-9))
    for m in range(1, 6):
        waits = alike_s(40, m, 1.0, 1.0, ratio) - (2 + 2 * ratio + 40 * m - 1)
        assert (waits > 1e-9) == (m < needed)


def pools(n_attention: int, n_experts: int, *, attention_tp: int = 1, expert_tp: int = 1, **load: Any) -> Setting:
    """A setting of attention on one machine and experts on another one."""
    model = tiny_model(hidden_size=1024, attention=gqa())
    one = tiny_setting(
        model, tiny_cluster(1, n_attention), random_trace(model), attention_tp=attention_tp, phase="decode", **load
    )
    layout = ExpertLayout(n_devices=n_experts, devices_per_node=n_experts, tp=expert_tp, sources=n_attention)
    return replace(one, pool=tiny_cluster(1, n_experts), layout=layout)


def schedule_of(m: int, **fields: Any) -> ScheduleSpec:
    return ScheduleSpec.model_validate({"overlap": "ping-pong", "chunks": m} | fields)


def written_out(setting: Setting, op_list: OpList, durations: list[Duration], step: int) -> float:
    """End of the last attention device, from the words of the law: each pool has as many devices as it has.

    Durations are those of the simulated devices, whose first ones are the pools' own.
    """
    n_a, n_e = setting.cluster.n_devices, setting.expert_cluster.n_devices
    free = {lane: np.zeros(n) for lane, n in (("compute", n_a), ("send", n_a), ("receive", n_a))}
    free |= {lane: np.zeros(n_e) for lane in ("experts", "send-experts", "receive-experts")}
    ends: list[np.ndarray] = []  # type: ignore[type-arg]
    for op, duration in zip(op_list.ops, durations, strict=True):
        size = len(free[op.lanes[0]])
        ready = free[op.lanes[0]].copy()
        for dep in op.after:
            ready = np.maximum(ready, ends[dep][:size])
        if isinstance(duration, ExchangeTime):
            sent = ready + duration.send_s[step][:size]
            target = len(free[op.lanes[1]])
            received = np.maximum(free[op.lanes[1]], ready.min()) + duration.receive_s[step][:target]
            end = np.maximum(received, sent.max())
            free[op.lanes[0]], free[op.lanes[1]] = sent, end
        else:
            end = ready + duration[step][:size]
            free[op.lanes[0]] = end
        ends.append(end)
    return float(max(end.max() for end in ends))


@pytest.mark.parametrize(("n_attention", "n_experts"), [(4, 4), (2, 8), (8, 2), (3, 4), (4, 3)])
@pytest.mark.parametrize("m", [1, 3])
def test_pools_of_different_sizes_are_simulated_as_they_are(n_attention: int, n_experts: int, m: int) -> None:
    setting = pools(n_attention, n_experts)
    if 8 % n_experts:
        setting = replace(setting, model=tiny_model(hidden_size=1024))
    placement = even_placement(setting.model, n_experts) if 8 % n_experts == 0 else uneven(setting)
    schedule = schedule_of(m)
    execution = execute_schedule(setting, placement, reduced(setting, placement, schedule), schedule)
    for step, took_s in enumerate(execution.step_times_s):
        want = written_out(setting, execution.op_list, list(execution.durations), step)
        assert took_s == pytest.approx(want, rel=1e-12)


def uneven(setting: Setting) -> Any:
    from tests.small import random_placement

    return random_placement(2, 8, setting.layout.n_ranks, 8, seed=3)


def test_every_token_crosses_once_for_each_rank_that_it_visits() -> None:
    setting = pools(2, 4)
    placement = even_placement(setting.model, 4)
    reduction = reduced(setting, placement, schedule_of(2))
    ids = setting.batches.trace.ids[:, :, setting.batches.tokens]  # layer, k, step, device, token
    ranks = ids // 2
    visits = 2 - (ranks[:, 0] == ranks[:, 1])
    assert reduction.slot_tokens.sum() == ids.size
    assert reduction.ports.send_inter.sum() == reduction.ports.receive_inter.sum() == visits.sum()
    assert (reduction.ports.send_inter[..., 2:] == 0).all()
    assert (reduction.ports.receive_inter[..., :2] == 0).all()
    assert (reduction.ports.send_inter[..., :2].sum(axis=(1, 2)) == visits.sum(axis=(1, 2, 3))).all()


@pytest.mark.parametrize(("n_attention", "n_experts"), [(4, 4), (2, 8), (8, 2)])
def test_time_of_devices_of_both_pools_adds_up(n_attention: int, n_experts: int) -> None:
    setting, schedule = pools(n_attention, n_experts), schedule_of(2)
    placement = even_placement(setting.model, n_experts)
    reduction = reduced(setting, placement, schedule)
    folded = execute_schedule(setting, placement, reduction, schedule)
    execution = where_it_ran(folded, setting)
    assert execution.finished.end_s.shape[-1] == n_attention + n_experts
    assert (execution.step_times_s == folded.step_times_s).all()
    parts = breakdown_s(execution, 0.0)
    assert sum(parts.values()) == pytest.approx(execution.step_times_s.mean())
    by_kind = {op.work.kind: 0.0 for op in folded.op_list.ops}
    for op, duration in zip(folded.op_list.ops, folded.durations, strict=True):
        if not isinstance(duration, ExchangeTime):
            own = n_experts if op.work.kind == "experts" else n_attention
            by_kind[op.work.kind] += float(duration[:, :own].sum(axis=1).mean()) / (n_attention + n_experts)
    for kind in ("attention", "gate", "experts", "head"):
        assert parts[kind] == pytest.approx(by_kind[kind])
    metrics = time_metrics(execution, np.cumsum([0, *execution.step_times_s]), setting, 0.0)
    step_s = execution.step_times_s.mean()
    assert metrics["tokens_per_s"] == pytest.approx(4 * n_attention / step_s)
    assert metrics["tokens_per_s_per_device"] == pytest.approx(4 * n_attention / (n_attention + n_experts) / step_s)
    assert 0 < metrics["busy_frac.compute"] < 1
    traffic = traffic_metrics(setting, reduction, schedule)
    assert (traffic["cross_device_frac"], traffic["cross_node_frac"]) == (1, 1)
    assert traffic["bytes.infiniband"] == pytest.approx(2 * 2048 * reduction.ports.send_inter.sum() / 3)
    assert load_metrics(setting, placement, reduction)["load_imbalance"] >= 1


def test_a_group_of_experts_shares_what_it_receives() -> None:
    whole, shared = pools(4, 4), pools(4, 4, expert_tp=2)
    sums = []
    for setting in (whole, shared):
        placement = even_placement(setting.model, setting.layout.n_ranks)
        reduction = reduced(setting, placement, schedule_of(1, exchange={"dedup": "none"}))
        assert reduction.ports.receive_inter.sum() == 2 * setting.batches.tokens.size * 2
        sums.append(reduction.ports.receive_inter[..., 4:].sum(axis=(0, 1)))
    assert sums[1].reshape(2, 2).sum(axis=1) == pytest.approx(sums[0].reshape(2, 2).sum(axis=1))


def test_faster_devices_of_one_pool_shorten_its_work_alone() -> None:
    from tests.devices import round_gpu

    setting, schedule = pools(4, 4), schedule_of(2)
    device = round_gpu()
    peaks = {
        dtype: peak.model_copy(update={"value": peak.value * 4}) for dtype, peak in device.card.peak_flop_per_s.items()
    }
    rate = device.card.memory_bytes_per_s
    memory = rate.model_copy(update={"value": rate.value * 4})
    card = device.card.model_copy(update={"peak_flop_per_s": peaks, "memory_bytes_per_s": memory})
    faster = replace(setting, pool=replace(tiny_cluster(1, 4), device=replace(device, card=card)))
    placement = even_placement(setting.model, 4)
    times = [
        breakdown_s(where_it_ran(execute_schedule(s, placement, reduced(s, placement, schedule), schedule), s), 0.0)
        for s in (setting, faster)
    ]
    assert times[0]["attention"] == times[1]["attention"]
    assert times[0]["experts"] > times[1]["experts"]


def test_each_pool_holds_what_is_its_own() -> None:
    setting = pools(2, 4)
    placement = even_placement(setting.model, 4)
    whole = device_memory(setting, placement, MemorySpec())
    attention, experts = pool_memories(whole, setting, MemorySpec())
    assert (attention.used_bytes == whole.other_weight_bytes + whole.kv_bytes).all()
    assert len(attention.used_bytes) == 2
    assert (experts.used_bytes == setting.model.expert_bytes * 2 * 2).all()  # of two layers, two on a device
    assert len(experts.used_bytes) == 4
    full = MemorySpec(requests_per_device=2**22, context_tokens=1000)
    fuller = fullest(pool_memories(device_memory(setting, placement, full), setting, full))
    with pytest.raises(MemoryInfeasible, match=r"experts 0\.0"):
        check_memory(fuller, setting, placement)


def without_network(cluster: Cluster) -> Cluster:
    return replace(cluster, inter=None)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ({"overlap": "none"}, "one pool|two pools"),
        ({"exchange": {"law": "fifo"}}, "law port"),
        ({"exchange": {"dedup": "node"}}, "dedup node"),
        ({"launch": "eager"}, "launch eager"),
    ],
)
def test_schedules_that_do_not_fit_two_pools_are_refused(schedule: dict[str, Any], text: str) -> None:
    spec = ScheduleSpec.model_validate({"overlap": "ping-pong"} | schedule)
    with pytest.raises(ScenarioError, match=text):
        check_pools(pools(2, 4), spec)


def test_one_pool_knows_no_ping_pong_and_pools_need_a_network() -> None:
    setting = pools(2, 4)
    with pytest.raises(ScenarioError, match=r"give cluster\.experts"):
        check_pools(replace(setting, pool=None), schedule_of(2))
    with pytest.raises(ScenarioError, match="inter_link"):
        check_pools(replace(setting, cluster=without_network(setting.cluster)), schedule_of(2))
    with pytest.raises(PlacementError, match="none is on a device of experts"):
        placement_problem(setting, PlacementSpec(solver="joint"), 0, ExchangeSpec())
