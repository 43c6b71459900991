"""No simulation exceeds the bound of its hardware, whatever the plan, the schedule and the kernel laws."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import api
from scenarios.schedule_specs import ScheduleSpec
from sim.bound.bounds import bound_of, bounds_of
from sim.bound.resources import resources
from sim.run import simulate
from sim.session import Plan, Session
from tests.properties.test_simulation import Case, cases
from tests.small import (
    even_placement,
    measured,
    random_placement,
    random_trace,
    reduced,
    tiny_cluster,
    tiny_model,
    tiny_setting,
)

ROUNDING = 1e-9
FULL_SIZE = 30  # a search outside the suite took 2,000


def bound_tokens_per_s(case: Case, *, any_plan: bool) -> float:
    reduction = reduced(case.setting, case.placement, case.schedule)
    rows = resources(case.setting, case.placement, reduction, case.schedule.exchange)
    return min(row.tokens_per_s for row in rows if row.holds == "any plan" or not any_plan)


@settings(max_examples=20)
@given(cases())
def test_no_simulation_exceeds_the_bound_of_its_plan(case: Case) -> None:
    assert case.metrics()["tokens_per_s"] <= bound_tokens_per_s(case, any_plan=False) * (1 + ROUNDING)


@settings(max_examples=20)
@given(cases(replicas=0), st.integers(0, 1000))
def test_no_other_placement_exceeds_the_rows_that_hold_for_any_plan(case: Case, seed: int) -> None:
    bound = bound_tokens_per_s(case, any_plan=True)
    setting = case.setting
    other = random_placement(case.placement.n_layers, 8, setting.layout.n_ranks, 8, seed)
    assert replace(case, placement=other).metrics()["tokens_per_s"] <= bound * (1 + ROUNDING)


def random_scenario(rng: np.random.Generator) -> list[str]:
    """Overrides of the first example: hardware, size, phase, plan and schedule drawn at random."""
    node, kernels = [
        ("h200-sxm-8", "h200-trtllm"),
        ("h200-sxm-8", "h200-sglang"),
        ("h100-sxm-8", "h100-vllm"),
        ("b200-8", "b200-vllm"),
        ("a100-80-8", "a100-vllm"),
        ("rtx-pro-6000-8", "rtx-pro-6000-vllm"),
        ("h20-8", "datasheet-only"),
    ][rng.integers(7)]
    nodes, chunks = int(rng.choice([1, 2])), int(rng.choice([1, 2, 4]))
    phase, tokens = [("decode", int(rng.choice([4, 32, 256]))), ("prefill", int(rng.choice([64, 1024])))][
        rng.integers(2)
    ]
    solver = str(rng.choice(["contiguous", "greedy", "eplb", "random"]))
    redundant = int(rng.choice([0, 16])) if solver == "eplb" else 0
    devices = 8 * nodes
    overlap = "none" if chunks == 1 else f"chunked, chunks: {chunks}"
    launch = str(rng.choice(["graph", "eager"]))
    dedup = str(rng.choice(["none", "device", "node"]))
    return [
        f"cluster={{node: {node}, nodes: {nodes}, kernels: {kernels}}}",
        f"parallel={{attention: {{dp: {devices}}}, experts: {{ep: {devices}}}}}",
        "workload.synthetic.tokens=8192",
        f"workload.phase={phase}",
        f"workload.tokens_per_device={tokens}",
        "workload.steps=2",
        f"workload.context_tokens={int(rng.choice([128, 2048]))}",
        f"placement={{solver: {solver}, redundant: {redundant}}}",
        f"schedule={{overlap: {overlap}, launch: {launch}, exchange: {{dedup: {dedup}}}}}",
        "memory.reserve=0.0",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FULL_SIZE))
def test_no_simulation_of_real_kernels_exceeds_the_bound(seed: int) -> None:
    overrides = random_scenario(np.random.default_rng(seed))
    scenario = api.load("examples/synthetic", overrides)
    session = Session(scenario.spec, scenario.folder)
    spec = scenario.spec
    plan = Plan.of(spec)
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    bound = bound_of(session, setting, session.plan_of(setting, plan).placement, plan)
    reached = simulate(session, setting, plan).metrics["tokens_per_s"]
    assert reached <= bound.tokens_per_s * (1 + ROUNDING)
    assert reached > 0.02 * bound.tokens_per_s, "a bound that far away says nothing"


def test_a_device_alone_with_one_expert_reaches_its_bound_but_for_the_tiles() -> None:
    """One device, one expert a token, no exchange: what is left of the gap are fixed times and partly filled tiles."""
    model = tiny_model(n_experts=1, top_k=1, n_layers=1)
    cluster = tiny_cluster(1, 1)
    setting = tiny_setting(model, cluster, random_trace(model), tokens_per_device=64)
    plan = even_placement(model, 1)
    rows = resources(setting, plan, reduced(setting, plan, ScheduleSpec()), ScheduleSpec().exchange)
    device_time = next(row for row in rows if row.name == "device time")
    reached = measured(setting, plan).metrics["tokens_per_s"]
    assert 0.8 * device_time.tokens_per_s <= reached <= device_time.tokens_per_s * (1 + ROUNDING)


@pytest.mark.slow
def test_levers_are_the_slopes_of_the_bound() -> None:
    scenario = api.load("examples/synthetic", ["workload.steps=2", "workload.synthetic.tokens=4096"])
    found = bounds_of(Session(scenario.spec, scenario.folder))
    for lever in found.levers:
        assert 0 <= lever.tenth_more_tokens_per_s <= 0.1 * found.at.tokens_per_s * (1 + 1e-6)
        assert 0 <= lever.per_unit * 0.01 * lever.now <= 0.01 * found.at.tokens_per_s * (1 + 1e-6)
    by_name = {lever.name: lever for lever in found.levers}
    assert by_name["nvlink-4 bandwidth"].per_unit == 0, "ports do not bind here"
    assert by_name["memory bandwidth"].per_unit > 0
