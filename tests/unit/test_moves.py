"""Experts that move: what stays and what travels, against loops over devices, closed forms, and by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from placement.layout import ExpertLayout
from placement.moves import cheaper_to_pull, copies_elsewhere, fetch_of, needed, pulled_ports
from placement.plan import Placement
from placement.reduction import Moves
from placement.sources import by_peers, reduction_of, source_tokens
from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import MemorySpec
from sim.exchange_pricing import machine_of
from sim.memory import check_memory, device_memory, with_copies
from sim.metrics import load_metrics
from sim.priced_steps import execute_schedule
from sim.session import reduced
from sim.setting import Setting
from tests.devices import ideal_gpu
from tests.small import even_placement, measured, random_trace, tiny_cluster, tiny_model, tiny_setting, trace_of

SHAPES = [(1, 4), (2, 2), (2, 4)]


def schedule_of(**fields: Any) -> ScheduleSpec:
    return ScheduleSpec.model_validate({"exchange": {"dedup": "none"}} | fields)


def setting_of(nodes: int = 1, per_node: int = 4, tokens: int = 16, hot: bool = False, **fields: Any) -> Setting:
    model = tiny_model(**fields)
    trace = hot_trace(model.n_experts, len(model.moe_layers)) if hot else random_trace(model)
    return tiny_setting(model, tiny_cluster(nodes, per_node, device=ideal_gpu()), trace, tokens_per_device=tokens)


def hot_trace(n_experts: int, n_layers: int) -> Any:
    """Three tokens of four visit expert 0, others one after another; top-1."""
    token = np.arange(512)
    ids = np.where(token % 4 < 3, 0, token // 4 % n_experts)
    return trace_of(np.tile(ids, (n_layers, 1, 1)), n_experts, [16] * 32)


def sources_of(setting: Setting, placement: Placement) -> Any:
    return source_tokens(setting.trace, setting.batches.tokens, placement, setting.layout)


@pytest.mark.parametrize(("nodes", "per_node"), SHAPES)
def test_pulled_copies_cross_to_a_node_once(nodes: int, per_node: int) -> None:
    """Loops: into each other node that needs an expert goes one copy, to the owner's number; all others stay inside."""
    layout = ExpertLayout(n_devices=nodes * per_node, devices_per_node=per_node)
    n_slots = 2 * layout.n_devices
    placement = even_placement(tiny_model(n_experts=n_slots, n_layers=1), layout.n_ranks)
    copies = np.random.default_rng(3).random((1, 1, layout.n_devices, n_slots)) < 0.3
    fetched = copies & copies_elsewhere(placement, np.ones((1, 1, n_slots), bool), layout.n_devices)
    want = np.zeros((4, layout.n_devices), int)  # sent and received inside, sent and received between
    for slot in range(n_slots):
        home = slot // 2
        for node in range(nodes):
            wanted = [d for d in range(node * per_node, (node + 1) * per_node) if fetched[0, 0, d, slot]]
            holder = home
            if wanted and home // per_node != node:
                holder = node * per_node + home % per_node
                want[2, home] += 1
                want[3, holder] += 1
            for device in wanted:
                want[0, holder] += device != holder
                want[1, device] += device != holder
    ports = pulled_ports(placement, layout, fetched)
    got = [ports.send_intra, ports.receive_intra, ports.send_inter, ports.receive_inter]
    np.testing.assert_array_equal([side[0, 0] for side in got], want)


@pytest.mark.parametrize("kind", ["shadow", "pull", "auto"])
@pytest.mark.parametrize("overlap", ["none", "chunked"])
def test_every_token_travels_or_stays(kind: str, overlap: str) -> None:
    setting = setting_of(hot=True, top_k=1)
    placement = even_placement(setting.model, 4)
    reduction = reduced(setting, placement, schedule_of(overlap=overlap, move={"kind": kind}))
    assert reduction.moves is not None
    local = reduction.moves.local_tokens
    n_choices = 2 * 3 * 4 * 16
    assert reduction.slot_tokens.sum() + local.sum() == n_choices == reduction.pairs_total.sum()
    assert (local[~(reduction.moves.fetched | reduction.moves.pulled[:, None, None, None])] == 0).all()


def test_the_hot_expert_is_shadowed_and_the_layer_gets_shorter_as_predicted() -> None:
    """Expert 0 takes three tokens of four: 12 MB cross the ports of its device, its weights are 0.4 MB."""
    setting = setting_of(hot=True, top_k=1, tokens=2048, n_layers=1, hidden_size=1024)
    placement = even_placement(setting.model, 4)
    plain = execute_schedule(setting, placement, reduced(setting, placement, schedule_of()), schedule_of()).step_times_s
    shadow = schedule_of(move={"kind": "shadow"})
    reduction = reduced(setting, placement, shadow)
    assert reduction.moves is not None
    assert reduction.moves.fetched[:, :, 1:, 0].all()
    assert not reduction.moves.fetched[:, :, 0, 0].any()
    moved = execute_schedule(setting, placement, reduction, shadow).step_times_s
    assert (moved < plain).all()


def test_greedy_stops_where_simulated_prefixes_stop_getting_shorter() -> None:
    """Every prefix of the experts by load forced and simulated: the choice is the first that the next does not beat."""
    model = tiny_model(top_k=1, n_layers=1, hidden_size=1024, expert_intermediate_size=256)
    ids = np.random.default_rng(4).choice(8, 4096, p=np.array([40, 25, 15, 8, 5, 3, 2, 2]) / 100)
    setting = tiny_setting(model, tiny_cluster(device=ideal_gpu()), trace_of(ids[None, None], 8, [4096]), steps=1)
    setting = replace(setting, batches=replace(setting.batches, tokens=np.arange(4096).reshape(1, 4, 1024)))
    setting = replace(setting, workload=setting.workload.model_copy(update={"tokens_per_device": 1024}))
    setting = replace(setting, batches=replace(setting.batches, contexts=np.ones((1, 4, 1024), np.int32)))
    placement, shadow = even_placement(model, 4), schedule_of(move={"kind": "shadow"})
    sources = sources_of(setting, placement)
    order = np.argsort(-sources.sum(axis=2), axis=-1, kind="stable")[0, 0]
    times_s = []
    for n in range(9):
        chosen = np.isin(np.arange(8), order[:n])[None, None]
        fetched = copies_elsewhere(placement, chosen, 4)
        moves = Moves(
            fetched=fetched,
            local_tokens=np.where(fetched, sources, 0),
            pulled=np.zeros(1, bool),
            broadcast=True,
        )
        left = reduction_of(np.where(fetched, 0, sources), placement, setting.layout, chunks=1)
        forced = replace(left, moves=moves)
        times_s.append(float(execute_schedule(setting, placement, forced, shadow).step_times_s[0]))
    stop = next(n for n in range(9) if n == 8 or times_s[n + 1] >= times_s[n])
    got = reduced(setting, placement, shadow).moves
    assert got is not None
    assert 0 < stop < 8
    assert sorted(np.flatnonzero(got.fetched.any(axis=(0, 1, 2)))) == sorted(order[:stop])


def test_balanced_tokens_are_not_worth_a_broadcast() -> None:
    """One expert a device, all equally hot: every broadcast costs as much as the tokens of one expert bring."""
    model = tiny_model(n_experts=4, top_k=1, n_layers=1, expert_intermediate_size=4096)
    trace = trace_of(np.tile(np.arange(256) % 4, (1, 1, 1)), 4, [16] * 16)
    setting = tiny_setting(model, tiny_cluster(), trace, tokens_per_device=16)
    reduction = reduced(setting, even_placement(model, 4), schedule_of(move={"kind": "shadow"}))
    assert reduction.moves is not None
    assert not reduction.moves.fetched.any()


def test_the_share_of_shadowed_experts_is_a_metric() -> None:
    """One expert of eight on all other devices, in every layer and step."""
    setting = setting_of()
    placement = even_placement(setting.model, 4)
    reduction = reduced(setting, placement, schedule_of(move={"kind": "shadow"}))
    assert reduction.moves is not None
    fetched = np.zeros_like(reduction.moves.fetched)
    fetched[:, :, :, 0] = np.arange(4) != 0
    reduction = replace(reduction, moves=replace(reduction.moves, fetched=fetched))
    assert load_metrics(setting, placement, reduction)["moved_experts_frac"] == pytest.approx(1 / 8)


def test_a_broadcast_takes_the_slowest_link_once() -> None:
    """2 nodes of 4: bytes at 80 GB/s inside, at 4 x 8 GB/s between; seven ring steps before."""
    setting = setting_of(2, 4)
    machine = machine_of(setting, schedule_of().exchange)
    fetched = copies_elsewhere(even_placement(setting.model, 8), np.ones((2, 1, 8), bool), 8)
    fetch = fetch_of(machine, even_placement(setting.model, 8), fetched, broadcast=True)
    steps_s = 7 * max(setting.cluster.intra.ring_step_latency_s, setting.cluster.inter.ring_step_latency_s)
    assert fetch.send_s == pytest.approx(steps_s + 8 * setting.model.expert_bytes / 32e9)
    assert (fetch.inside == 8 * 6).all()
    assert (fetch.between == 8).all()


@pytest.mark.parametrize(("tokens", "wins"), [(16, False), (63, False), (65, True), (256, True)])
def test_pulling_wins_where_the_rule_of_janus_says_so(tokens: int, wins: bool) -> None:
    """R = B S k / (4 n H E) > 1, of plain experts with 8 H^2 weights: n = 2 nodes, H = 8, E = 1 expert a device."""
    model = tiny_model(n_experts=8, top_k=1, n_layers=1, hidden_size=8, expert_intermediate_size=32, gated=False)
    placement = even_placement(model, 8)
    trace = trace_of(np.tile(np.arange(4096) % 8, (1, 1, 1)), 8, [4096])
    setting = tiny_setting(model, tiny_cluster(2, 4), trace, tokens_per_device=tokens, steps=8)
    sources = np.full((1, 8, 8, 8), 8 * tokens, np.int32)  # exactly uniform, of 8 times as many tokens
    machine = machine_of(setting, schedule_of().exchange)
    ratio = 8 * 8 * tokens / (4 * 2 * 8 * 1) / 64
    assert (ratio > 1) == wins
    fetched = needed(placement, sources // 64, ahead=True)
    inter = pulled_ports(placement, setting.layout, fetched).send_inter.sum() * model.expert_bytes
    assert inter == 8 * 2 * 4 * 1 * 8 * 8**2 * 2  # steps x machines x (n - 1) m E 8 H^2 values of two bytes
    uniform = np.full((1, 8, 8, 8), 1, np.int32) * (tokens // 8 if tokens % 8 == 0 else 0)
    if tokens % 8 == 0:
        assert cheaper_to_pull(machine, placement, uniform, fetched)[0] == wins


@pytest.mark.parametrize("overlap", ["none", "prefetch"])
def test_pulled_layers_send_no_token_and_prefetch_hides_the_experts(overlap: str) -> None:
    setting = setting_of(2, 2, tokens=64)
    placement = even_placement(setting.model, 4)
    result = measured(setting, placement, schedule_of(overlap=overlap, move={"kind": "pull"}))
    kinds = {op.work.kind for op in result.execution.op_list.ops}
    assert kinds == {"attention", "gate", "fetch", "local", "head"}
    assert result.metrics["cross_device_frac"] == 0.0
    if overlap == "prefetch":
        plain = execute_schedule(setting, placement, result.reduction, schedule_of(move={"kind": "pull"}))
        assert (result.execution.step_times_s < plain.step_times_s).all()


@pytest.mark.parametrize("move", [{"kind": "shadow"}, {"kind": "pull"}, {"kind": "auto"}])
@pytest.mark.parametrize("overlap", ["none", "chunked", "prefetch"])
def test_both_executors_agree(move: dict[str, str], overlap: str) -> None:
    if overlap == "prefetch" and move["kind"] == "shadow":
        pytest.skip("shadowed experts are known after the gate")
    setting = setting_of(2, 2, hot=True, top_k=1, tokens=64)
    placement = even_placement(setting.model, 4)
    ends = []
    for executor in ("vector", "event"):
        schedule = schedule_of(overlap=overlap, move=move, executor=executor)
        ends.append(execute_schedule(setting, placement, reduced(setting, placement, schedule), schedule).step_times_s)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


def test_chunks_of_peers_hold_the_tokens_of_one_stride() -> None:
    setting = setting_of(2, 4)
    placement = even_placement(setting.model, 8)
    sources = sources_of(setting, placement)
    parts = by_peers(sources, placement, setting.layout, 4).reshape(2, 3, 4, 8, 8)
    np.testing.assert_array_equal(parts.sum(axis=2), sources)
    for chunk, device, slot in np.ndindex(4, 8, 8):
        if (slot // 2 - device // 2) % 4 != chunk:
            assert (parts[:, :, chunk, device, slot] == 0).all()
    with pytest.raises(ScenarioError, match="3 groups of peers do not divide 8"):
        by_peers(sources, placement, setting.layout, 3)


def test_the_roofline_of_fastermoe_bounds_the_schedules() -> None:
    """Uniform durations: one after the other Lat_comp + 2 Lat_comm, pairwise chunks at least the larger of both."""
    model = tiny_model(n_experts=16, top_k=1, n_layers=1, hidden_size=1024, expert_intermediate_size=4096, gated=False)
    trace = trace_of(np.tile(np.arange(16 * 4096) % 16, (1, 1, 1)), 16, [16 * 4096])
    cluster = tiny_cluster(1, 16, device=ideal_gpu())
    setting = tiny_setting(model, cluster, trace, tokens_per_device=4096, steps=1)
    placement = even_placement(model, 16)
    plain = measured(setting, placement, schedule_of())
    comm_s = 4096 * 15 / 16 * 1024 * 2 / 80e9
    assert plain.breakdown_s["transfer"] == pytest.approx(2 * (comm_s + 5e-6), rel=0.01)
    comp_s = plain.breakdown_s["experts"]
    pairwise = schedule_of(overlap="chunked", chunks=16, chunks_by="peers")
    smart = measured(setting, placement, pairwise)
    other_s = plain.execution.step_times_s.mean() - comp_s - plain.breakdown_s["transfer"]
    smart_s = smart.execution.step_times_s.mean() - other_s
    bound_s = max(comp_s, 2 * comm_s)
    assert bound_s <= smart_s * (1 + 1e-9)
    assert comp_s > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"move": {"kind": "pull"}, "exchange": {}}, "dedup: none"),
        ({"move": {"kind": "pull"}, "overlap": "two-batch"}, "move needs overlap none, chunked, prefetch"),
        ({"move": {"kind": "shadow"}, "overlap": "prefetch"}, "known after the gate"),
        ({"overlap": "prefetch"}, "give move"),
        ({"move": {"kind": "pull"}, "payload": {"rate": 0.2}}, "do not go together"),
        ({"chunks_by": "peers"}, "needs overlap chunked"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schedule_of(**fields)


def test_copies_must_fit_into_memory() -> None:
    """Two layers of three copies of experts each are held at once where they come ahead."""
    setting = setting_of(n_experts=4)
    placement = even_placement(setting.model, 4)
    memory = device_memory(setting, placement, MemorySpec())
    schedule = schedule_of(overlap="prefetch", move={"kind": "pull"})
    moves = reduced(setting, placement, schedule).moves
    assert moves is not None
    more = with_copies(memory, moves, setting.model, buffers=2)
    added = more.expert_bytes - memory.expert_bytes
    assert added.tolist() == [2 * 3 * setting.model.expert_bytes] * 4
    full = replace(more, usable_bytes=float(memory.used_bytes.max()))
    with pytest.raises(MemoryInfeasible, match="short by"):
        check_memory(full, setting, placement)


def test_split_experts_do_not_move() -> None:
    model = tiny_model()
    setting = tiny_setting(model, tiny_cluster(), random_trace(model), expert_tp=2)
    with pytest.raises(ScenarioError, match=r"use experts\.tp 1"):
        reduced(setting, even_placement(model, 2), schedule_of(move={"kind": "pull"}))
