"""What `auto` promises: never slower than EPLB on the fitted steps, sizes that fit, and no plan known by heart."""

from dataclasses import replace

import numpy as np
import pytest

import placement.joint as joint_module
import placement.saa as saa_module
from placement.auto import _chosen, candidates, redundancies, splits
from placement.exchange_time import Machine
from placement.layout import ExpertLayout
from placement.objectives import OBJECTIVES
from placement.problem import ExpertMemory, PlacementProblem, with_sample
from placement.sample import TokenSample
from placement.solve import solve
from scenarios.errors import PlacementError, PlacementInfeasible
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ExchangeSpec
from tests.small import random_ids, tiny_cluster, tiny_model, trace_of

AUTO = PlacementSpec(solver="auto")


@pytest.fixture(autouse=True)
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_module, "ROUNDS_PER_SLOT", 1)
    monkeypatch.setattr(saa_module, "ROUNDS_PER_SLOT", 1)


def problem(n_experts: int = 8, **more: object) -> PlacementProblem:
    model = tiny_model(n_experts=n_experts)
    layout = ExpertLayout(n_devices=4, devices_per_node=2)
    machine = Machine(model=model, cluster=tiny_cluster(2, 2), layout=layout, exchange=ExchangeSpec())
    trace = trace_of(random_ids((2, 2, 240), n_experts), n_experts)
    empty = PlacementProblem(
        loads=np.ones((2, n_experts)),
        n_ranks=4,
        ranks_per_node=2,
        redundant=-n_experts % 4,
        machine=machine,
        **more,  # type: ignore[arg-type]
    )
    sampled = with_sample(empty, TokenSample(trace=trace, tokens=np.arange(240).reshape(6, 4, 10)), ["batch_loads"])
    assert sampled.batch_loads is not None
    return replace(sampled, loads=sampled.batch_loads.sum(axis=0))


def test_no_variant_of_eplb_is_faster_on_the_fitted_steps() -> None:
    task = problem()
    result = solve(task, AUTO)
    variants = [plan for plan in candidates(task, AUTO) if plan.name.startswith("eplb")]
    assert len(variants) == 2 * (1 + 3 + 3)  # two policies; one split without replicas, three with them
    for plan in variants:
        assert result.objective <= OBJECTIVES["time"].value(plan, replace(task, redundant=plan.redundant_slots)) * (
            1 + 1e-12
        )


def test_the_choice_is_made_on_steps_that_nothing_was_annealed_on() -> None:
    # plan 1 is best on the known steps 0 and 1 alone, plan 2 on the others; plan 3 is too, but loses to EPLB overall
    step_s = np.array([[4.0, 4, 4, 4], [1, 1, 4, 4], [3, 3, 3, 3], [9, 9, 1, 1]])
    is_eplb = [True, False, False, False]
    assert _chosen(step_s, is_eplb, np.array([0, 1])) == 2
    assert _chosen(step_s, is_eplb, np.arange(4)) == 1
    assert _chosen(step_s[:1], [True], np.array([0])) == 0


def test_sizes_fit_the_memory_and_hold_no_expert_twice() -> None:
    assert redundancies(problem(), AUTO) == [0, 4, 8]
    assert redundancies(problem(6), AUTO) == [2, 6, 10]
    small = ExpertMemory(slot_bytes=1.0, free_bytes=np.full(4, 3.0))
    assert redundancies(problem(memory=small), AUTO) == [0, 4]
    assert redundancies(problem(), PlacementSpec(solver="auto", spare=(6, 7))) == [24]  # of 8 experts, 7 spare are 36
    with pytest.raises(PlacementInfeasible, match=r"none of spare \[7\] slots a rank fits"):
        solve(problem(), PlacementSpec(solver="auto", spare=(7,)))


def test_a_split_that_the_user_names_is_the_only_one() -> None:
    assert splits(AUTO, 4) == ("even", "lp", "lp-local")
    assert splits(AUTO, 0) == ("even",)
    assert splits(PlacementSpec(solver="auto", split="even"), 4) == ("even",)


def test_what_a_solver_needs_is_asked_for() -> None:
    bare = PlacementProblem(loads=np.ones((2, 8)), n_ranks=4, ranks_per_node=2)
    with pytest.raises(PlacementError, match="solver auto needs batch_loads and sample and machine"):
        solve(bare, AUTO)
    with pytest.raises(PlacementInfeasible, match=r"2 slots a layer take .* GiB on each rank, but rank 1"):
        replace(bare, memory=ExpertMemory(slot_bytes=2.0**30, free_bytes=np.array([4.0, 1, 4, 4]) * 2**30))
