"""What binds, what levers bring and what links carry, against loops, sums and a scenario that a user would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.moe_time import expert_times_s
from placement.plan import Placement
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import CompareSpec, ScenarioSpec
from sim.binding import binding
from sim.exchange_pricing import machine_of
from sim.levers import Lever, levers
from sim.port_loads import port_loads
from sim.run import compare, simulate
from sim.session import Plan, Session
from sim.setting import Setting
from tests.small import even_placement, measured, random_trace, reduced, tiny_cluster, tiny_model, tiny_setting

GOLDEN = Path(__file__).parents[1] / "golden"


def tiny(n_nodes: int = 1) -> tuple[Setting, Placement]:
    model = tiny_model()
    cluster = tiny_cluster(n_nodes)
    setting = tiny_setting(model, cluster, random_trace(model), tokens_per_device=32)
    return setting, even_placement(model, cluster.n_devices)


def test_layers_and_ranks_bind_by_what_others_wait_for() -> None:
    setting, plan = tiny()
    schedule = ScheduleSpec()
    reduction = reduced(setting, plan, schedule)
    found = binding(setting, plan, reduction, schedule)
    times_s = expert_times_s(machine_of(setting, schedule.exchange), plan, reduction)
    wins = np.zeros(4, int)
    excess_s = {}
    for layer, steps in enumerate(times_s):
        for ranks in steps:
            wins[list(ranks).index(max(ranks))] += 1
        excess_s[layer] = float(np.mean([max(ranks) - sum(ranks) / 4 for ranks in steps]))
    assert {layer.layer: layer.excess_s for layer in found.layers} == pytest.approx(excess_s)
    assert found.layers[0].excess_s >= found.layers[1].excess_s > 0
    assert {rank.rank: rank.slowest_frac for rank in found.ranks} == pytest.approx(dict(enumerate(wins / wins.sum())))
    # Without replicas no token can be split: one rank, the fullest, has the whole price.
    by_rank = setting.fit_loads.reshape(2, 4, 2).sum(axis=2)
    assert {layer.layer: layer.binding_ranks for layer in found.layers} == {
        layer: (int(loads.argmax()),) for layer, loads in enumerate(by_rank)
    }
    expected = np.mean(by_rank.max(axis=1) / by_rank.mean(axis=1))
    assert (found.imbalance_even, found.imbalance_split) == pytest.approx((expected, expected))
    for wanted in found.wanted:
        assert wanted.relief == pytest.approx(1)
        assert wanted.rank == int(by_rank[wanted.layer].argmin())
        assert wanted.expert // 2 == int(by_rank[wanted.layer].argmax())


@pytest.mark.parametrize(("n_nodes", "dedup"), [(1, "device"), (2, "device"), (2, "node"), (2, "none")])
def test_ports_carry_every_byte_that_the_metrics_count(n_nodes: int, dedup: str) -> None:
    setting, plan = tiny(n_nodes)
    schedule = ScheduleSpec.model_validate({"exchange": {"dedup": dedup}})
    result = measured(setting, plan, schedule)
    loads = port_loads(setting, result.reduction, schedule)
    assert loads.links == (setting.cluster.intra.kind, "infiniband")[:n_nodes]
    for link, kind in enumerate(loads.links):
        sent, received = loads.moved_bytes[link].sum(axis=1)
        assert sent == pytest.approx(received)
        assert sent == pytest.approx(result.metrics[f"bytes.{kind}"])
    fast = setting.cluster.intra.effective_bytes_per_s
    assert loads.busy_s[0] == pytest.approx(loads.moved_bytes[0] / fast)


def scenario(**fields: Any) -> ScenarioSpec:
    raw: dict[str, Any] = {
        "name": "levers",
        "model": "tiny-moe.yaml",
        "cluster": {"node": "h200-sxm-8", "nodes": 1},
        "workload": {"synthetic": {"tokens": 2048, "sequence_tokens": 32}, "tokens_per_device": 16, "steps": 3},
        "parallel": {"attention": {"dp": 8}, "experts": {"ep": 8}},
        "placement": {"solver": "eplb", "redundant": 8},
    }
    return ScenarioSpec.model_validate(raw | fields)


def pulled(spec: ScenarioSpec) -> tuple[float, dict[str, Lever]]:
    """Tokens per second of the plan as it is, and its levers by name."""
    session = Session(spec, GOLDEN)
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    plan = Plan.of(spec)
    base = simulate(session, setting, plan)
    heard: list[str] = []
    found = levers(session, setting, plan, base, heard.append)
    assert heard == [lever.name for lever in found]
    return base.metrics["tokens_per_s"], {lever.name: lever for lever in found}


def tokens_per_s(spec: ScenarioSpec) -> float:
    (table,) = compare(spec.model_copy(update={"compare": CompareSpec()}), GOLDEN, "test").tables
    return table.results[0].metrics["tokens_per_s"]


@pytest.mark.slow
def test_levers_are_what_a_changed_scenario_gives() -> None:
    base, found = pulled(scenario())
    n_experts = 32
    changed = {
        "one replica slot a rank more (16)": scenario(placement={"solver": "eplb", "redundant": 16}),
        "one replica slot a rank less (0)": scenario(placement={"solver": "eplb", "redundant": 0}),
        "one node more (2)": scenario(
            cluster={"node": "h200-sxm-8", "nodes": 2},
            parallel={"attention": {"dp": 16}, "experts": {"ep": 16}},
            placement={"solver": "eplb", "redundant": 16},
        ),
        "the same devices in two nodes": scenario(
            cluster={"node": "h200-sxm-8", "nodes": 2, "devices_per_node": 4},
        ),
        "links inside nodes twice as fast": scenario(
            cluster={"node": "h200-sxm-8", "intra_bandwidth": "900 GB/s"},
        ),
    }
    assert found.keys() == changed.keys()
    for name, spec in changed.items():
        assert (n_experts + spec.placement.redundant) % (spec.cluster.nodes * (spec.cluster.devices_per_node or 8)) == 0
        assert found[name].gain == pytest.approx(tokens_per_s(spec) / base - 1, rel=1e-9), name
    assert found["one node more (2)"].per_device_gain == pytest.approx((1 + found["one node more (2)"].gain) / 2 - 1)


@pytest.mark.slow
def test_two_nodes_may_become_one() -> None:
    spec = scenario(
        cluster={"node": "h200-sxm-8", "nodes": 2},
        parallel={},
        placement={"solver": "contiguous", "redundant": 0},
    )
    _, found = pulled(spec)
    assert set(found) == {
        "one replica slot a rank more (16)",
        "one node more (3)",
        "all 16 devices in one node",
        "links inside nodes twice as fast",
        "links between nodes twice as fast",
    }
    assert found["all 16 devices in one node"].gain > 0
    assert found["one node more (3)"].plan == "contiguous+16"  # 32 experts need 16 replicas on 24 ranks


@pytest.mark.slow
def test_a_lever_that_does_not_fit_says_why() -> None:
    used = [peak_bytes(scenario(placement={"solver": "eplb", "redundant": redundant})) for redundant in (8, 16)]
    reserve = 1 - np.mean(used) / 141e9  # datasheet of the H200: 141 GB
    _, found = pulled(scenario(memory={"reserve": float(reserve)}))
    more = found["one replica slot a rank more (16)"]
    assert "short by" in more.why_not
    assert (more.gain, more.step_time_s) == (0.0, 0.0)
    assert not found["one replica slot a rank less (0)"].why_not


def peak_bytes(spec: ScenarioSpec) -> float:
    (table,) = compare(spec.model_copy(update={"compare": CompareSpec()}), GOLDEN, "test").tables
    return table.results[0].metrics["memory_bytes.peak"]
