"""What must hold of whole simulations: names do not matter, time scales, runs repeat."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from placement.plan import Placement
from scenarios.models import ModelCard
from scenarios.schedule_specs import ScheduleSpec
from sim.durations import ExchangeTime
from sim.setting import Setting
from tests.devices import half_speed, half_speed_link
from tests.small import gqa, measured, random_placement, random_trace, tiny_cluster, tiny_model, tiny_setting
from traces.routing import RoutingTrace

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = {
    "sequential": {},
    "chunked": {"overlap": "chunked", "chunks": 3},
    "microbatches": {"overlap": "two-batch"},
    "forwarded": {"exchange": {"dedup": "node"}},
    "fifo": {"overlap": "chunked", "exchange": {"law": "fifo", "dedup": "none"}},
    "with host time": {"step_overhead": "100 us"},
}
SYMMETRIC = ("sequential", "chunked", "microbatches", "with host time")  # no ring order, no local numbers
OF_PORTS = (*SYMMETRIC, "forwarded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model on a machine, a plan and a schedule."""

    setting: Setting
    placement: Placement
    schedule: ScheduleSpec

    def metrics(self) -> dict[str, float]:
        result = measured(self.setting, self.placement, self.schedule)
        return result.metrics | {f"breakdown.{name}": time_s for name, time_s in result.breakdown_s.items()}


@st.composite
def cases(
    draw: st.DrawFn, *, replicas: int = 4, tensor_parallel: bool = True, schedules: Iterable[str] = SCHEDULES
) -> Case:
    n_nodes, devices_per_node = draw(st.sampled_from(((1, 2), (1, 4), (2, 2), (2, 4))))
    tp = st.sampled_from((1, 2) if tensor_parallel else (1,))
    attention_tp, expert_tp = draw(tp), draw(tp)
    seed = draw(st.integers(0, 2**32 - 1))
    model: ModelCard = tiny_model(
        hidden_size=1024,
        n_layers=3,
        first_moe_layer=draw(st.integers(0, 1)),
        dense_intermediate_size=64,
        shared_intermediate_size=draw(st.sampled_from((0, 32))),
        attention=gqa(window_tokens=draw(st.sampled_from((None, 5))), windowed_every=2),
    )
    setting = tiny_setting(
        model,
        tiny_cluster(n_nodes, devices_per_node),
        random_trace(model, seed=seed),
        attention_tp=attention_tp,
        expert_tp=expert_tp,
        phase=draw(st.sampled_from(("decode", "prefill"))),
        tokens_per_device=draw(st.sampled_from((1, 5, 16))),
    )
    n_slots = 8 + draw(st.integers(0, replicas))
    placement = random_placement(len(model.moe_layers), 8, setting.layout.n_ranks, n_slots, seed)
    schedule = ScheduleSpec.model_validate(SCHEDULES[draw(st.sampled_from(list(schedules)))])
    return Case(setting=setting, placement=placement, schedule=schedule)


@settings(max_examples=10)
@given(cases(), st.randoms(use_true_random=False))
def test_relabelling_experts_with_the_placement_changes_nothing(case: Case, random: Random) -> None:
    new_ids = np.array(random.sample(range(8), 8))
    setting = case.setting
    loads = np.empty_like(setting.fit_loads)
    loads[:, new_ids] = setting.fit_loads
    batches = replace(setting.batches, trace=with_ids(setting.batches.trace, new_ids))
    renamed = replace(setting, batches=batches, fit_loads=loads)
    placement = replace(case.placement, expert_of_slot=new_ids[case.placement.expert_of_slot])
    assert replace(case, setting=renamed, placement=placement).metrics() == case.metrics()


def with_ids(trace: RoutingTrace, new_ids: NDArray[np.int64]) -> RoutingTrace:
    return replace(trace, ids=new_ids[trace.ids].astype(trace.ids.dtype))


@pytest.mark.slow
@settings(max_examples=10)
@given(cases(replicas=0, tensor_parallel=False, schedules=SYMMETRIC), st.randoms(use_true_random=False))
def test_relabelling_nodes_and_their_devices_changes_nothing(case: Case, random: Random) -> None:
    n_nodes, in_node = case.setting.cluster.n_nodes, case.setting.cluster.devices_per_node
    nodes = random.sample(range(n_nodes), n_nodes)
    old = np.concatenate([node * in_node + np.array(random.sample(range(in_node), in_node)) for node in nodes])
    batches = case.setting.batches
    moved = replace(batches, tokens=batches.tokens[:, old], contexts=batches.contexts[:, old])
    placement = renumbered(case.placement, np.argsort(old))
    got = replace(case, setting=replace(case.setting, batches=moved), placement=placement).metrics()
    assert got == pytest.approx(case.metrics(), rel=1e-12, abs=1e-15)  # sums are taken in another order


def renumbered(placement: Placement, new_rank: NDArray[np.int64]) -> Placement:
    """The placement with every rank under its new number, slots in order of rank again."""
    ranks = new_rank[placement.rank_of_slot]
    order = np.argsort(ranks, axis=1, kind="stable")
    return replace(
        placement,
        rank_of_slot=np.take_along_axis(ranks, order, axis=1),
        expert_of_slot=np.take_along_axis(placement.expert_of_slot, order, axis=1),
    )


@settings(max_examples=10)
@given(cases())
def test_halving_all_speeds_doubles_all_times_exactly(case: Case) -> None:
    cluster = case.setting.cluster
    assert cluster.inter is not None
    slow = replace(
        cluster,
        device=half_speed(cluster.device),
        intra=half_speed_link(cluster.intra),
        inter=half_speed_link(cluster.inter),
    )
    schedule = case.schedule.model_copy(update={"step_overhead": 2 * case.schedule.step_overhead})
    fast = case.metrics()
    slowed = replace(case, setting=replace(case.setting, cluster=slow), schedule=schedule).metrics()
    for name, value in fast.items():
        is_time = name.startswith(("step_time_s", "breakdown."))
        factor = 2.0 if is_time else 0.5 if name.startswith("tokens_per_s") else 1.0
        assert slowed[name] == factor * value, name


@settings(max_examples=10)
@given(cases(schedules=OF_PORTS))
def test_a_step_is_never_shorter_than_the_work_of_a_lane(case: Case) -> None:
    execution = measured(case.setting, case.placement, case.schedule).execution
    busy_s: dict[str, NDArray[np.float64]] = {}
    for duration in execution.durations:
        is_exchange = isinstance(duration, ExchangeTime)
        lanes = {"send": duration.send_s, "receive": duration.receive_s} if is_exchange else {"compute": duration}
        busy_s |= {lane: busy_s.get(lane, 0.0) + time_s for lane, time_s in lanes.items()}
    assert set(busy_s) == {"compute", "send", "receive"}
    for time_s in busy_s.values():
        assert (execution.step_times_s[:, None] >= time_s * (1 - 1e-12)).all()


SCRIPT = """
import json, sys
from pathlib import Path
from scenarios.specs import ScenarioSpec
from sim.run import compare
spec = ScenarioSpec.model_validate(json.loads(sys.argv[1]))
result = compare(spec, Path("."), "test").as_json()
print(json.dumps(result))
"""
SCENARIO = {
    "name": "repeat",
    "model": "olmoe-1b-7b",
    "cluster": {"node": "h200-sxm-8", "nodes": 2},
    "workload": {"synthetic": {"tokens": 2048, "sequence_tokens": 64}, "tokens_per_device": 8, "steps": 4},
    "compare": {
        "placement": [
            {"solver": "random"},
            {"solver": "eplb", "redundant": 16, "split": "least-loaded"},
            {"solver": "greedy", "redundant": 16},
        ],
        "schedule": [{"overlap": "none"}, {"overlap": "chunked", "exchange": {"dedup": "node"}}],
    },
    "seed": 3,
}


@pytest.mark.slow
def test_runs_repeat_bit_for_bit_in_other_processes() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(SCENARIO)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1", "12345")
    ]
    assert len(json.loads(outputs[0])["results"]) == 6
    assert outputs[0] == outputs[1] == outputs[2]
