"""Layers that share a budget of replica slots: empty slots change nothing but what is held, and sizes are the best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from placement.checker import check_placement
from placement.exchange_time import Machine
from placement.layout import ExpertLayout
from placement.moe_time import moe_times
from placement.objectives import OBJECTIVES
from placement.plan import EMPTY, Placement, rank_loads
from placement.problem import PlacementProblem, SharedSlots, with_sample
from placement.sample import TokenSample
from placement.solve import solve
from scenarios.errors import PlacementError, PlacementInfeasible
from scenarios.placement_specs import PlacementSpec, SolverName, SplitName
from scenarios.schedule_specs import ExchangeSpec
from tests.small import random_ids, tiny_cluster, tiny_model, trace_of

N = EMPTY


def ragged(split: SplitName = "even") -> Placement:
    """Two ranks of three slots: layer 0 fills all, layer 1 leaves one of each rank empty, in unlike places."""
    slots = [[0, 1, 2, 3, 0, 1], [3, N, 0, N, 2, 1]]
    return Placement.from_slots(slots, 2, n_experts=4, name="ragged", split=split)


def packed(layer: int, split: SplitName = "even") -> Placement:
    """The same layer in both layers, without its empty slots."""
    own = [expert for expert in ragged().expert_of_slot[layer].tolist() if expert != N]
    return Placement.from_slots([own, own], 2, n_experts=4, name="packed", split=split)


def problem(total: int, sizes: tuple[int, ...], seed: int = 0, n_layers: int = 3) -> PlacementProblem:
    """Layers of four experts on two ranks, with steps and a machine."""
    rng = np.random.default_rng(seed)
    model, cluster = tiny_model(n_layers=n_layers, n_experts=4), tiny_cluster(1, 2)
    sample = TokenSample(
        trace=trace_of(random_ids((n_layers, 2, 64), 4, seed), 4), tokens=np.arange(3 * 2 * 8).reshape(3, 2, 8)
    )
    usual = PlacementProblem(
        loads=rng.integers(0, 40, (n_layers, 4)).astype(float),
        n_ranks=2,
        ranks_per_node=2,
        redundant=max(sizes),
        shared=SharedSlots(total=total, sizes=sizes),
        machine=Machine(
            model=model, cluster=cluster, layout=ExpertLayout(n_devices=2, devices_per_node=2), exchange=ExchangeSpec()
        ),
    )
    return with_sample(usual, sample)


def spec(solver: SolverName, total: int) -> PlacementSpec:
    return PlacementSpec(solver=solver, total_redundant=total, spare=(0, 1, 2))


def test_tables_of_a_plan_with_empty_slots() -> None:
    plan = ragged()
    assert plan.replica_slots.tolist() == [2, 0]
    assert plan.replica_counts().tolist() == [[2, 2, 1, 1], [1, 1, 1, 1]]
    assert plan.slots_per_rank().tolist() == [[3, 3], [2, 2]]
    assert plan.places_per_rank().tolist() == [[3, 3], [3, 3]]
    assert plan.slots_of_expert().tolist() == [[[0, 4], [1, 5], [2, -1], [3, -1]], [[2, -1], [5, -1], [4, -1], [0, -1]]]
    assert plan.duplicate_slots().tolist() == [0, 0]
    assert rank_loads(plan, np.array([[8.0, 4, 2, 1], [8, 4, 2, 1]])).tolist() == [[8, 7], [9, 6]]


@pytest.mark.parametrize("split", ["even", "least-loaded", "lp-local"])
def test_empty_slots_take_no_time_and_no_token(split: SplitName) -> None:
    task = problem(2, (0, 2), n_layers=2)
    assert task.machine is not None
    assert task.sample is not None
    times = moe_times(task.machine, ragged(split), task.sample)
    for layer in range(2):
        alone = moe_times(task.machine, packed(layer, split), task.sample)
        assert times.total_s[layer].tolist() == alone.total_s[layer].tolist()
        assert times.experts_s[layer].tolist() == alone.experts_s[layer].tolist()


@pytest.mark.parametrize("solver", ["eplb", "saa", "balance"])
@pytest.mark.parametrize("total", [0, 3, 4, 12])
def test_sizes_are_the_best_of_all_allocations(solver: SolverName, total: int) -> None:
    task = problem(total, (0, 2, 4), seed=total)
    found = solve(task, spec(solver, total))
    layers = OBJECTIVES[found.objective_name].by_layer
    assert layers is not None
    alone = {}
    for size in (0, 2, 4):
        sized = replace(task, redundant=size, shared=None)
        alone[size] = layers.value(solve(sized, PlacementSpec(solver=solver, redundant=size)).placement, sized)
    best = min(
        sum(alone[size][layer] for layer, size in enumerate(sizes))
        for sizes in product((0, 2, 4), repeat=3)
        if sum(sizes) <= total
    )
    assert found.objective == pytest.approx(best, rel=1e-12)
    assert found.placement.replica_slots.sum() <= total
    assert found.bound <= found.objective * (1 + 1e-9)


def all_plans(redundant: int) -> Iterator[list[int]]:
    """Slots of one layer of four experts on two ranks, every way to fill them up to order."""
    room = (4 + redundant) // 2
    for first, second in combinations_with_replacement(list(combinations_with_replacement(range(4), room)), 2):
        if set(first) | set(second) == set(range(4)):
            yield [*first, *second]


@pytest.mark.parametrize("objective", ["load", "batch-load", "time"])
def test_no_plan_is_below_the_bound(objective: str) -> None:
    task = problem(2, (0, 2), seed=5, n_layers=2)
    measure = OBJECTIVES[objective]  # type: ignore[index]
    assert measure.by_layer is not None
    least = {}
    for size in (0, 2):
        sized = replace(task, redundant=size, shared=None)
        plans = [Placement.from_slots([slots, slots], 2, n_experts=4, name="any") for slots in all_plans(size)]
        least[size] = np.min([measure.by_layer.value(plan, sized) for plan in plans], axis=0)
    best = min(least[0][0] + least[0][1], least[2][0] + least[0][1], least[0][0] + least[2][1])
    assert 0 < measure.bound(task) <= best * (1 + 1e-9)


def test_the_checker_counts_what_layers_share() -> None:
    task = problem(2, (0, 2), n_layers=2)
    check_placement(ragged(), task)
    with pytest.raises(PlacementError, match="2 redundant slots in all layers, more than 1"):
        check_placement(ragged(), replace(task, shared=SharedSlots(total=1, sizes=(0, 2))))
    with pytest.raises(PlacementError, match=r"layer 0: 2 redundant slots, not one of \(0, 4\)"):
        check_placement(ragged(), replace(task, redundant=4, shared=SharedSlots(total=9, sizes=(0, 4))))
    lopsided = Placement.from_slots([[0, 1, 2, 3, 0, 1], [3, 1, 0, N, 2, N]], 2, n_experts=4, name="lopsided")
    with pytest.raises(PlacementError, match="layer 1: rank 0 holds 3 of 4 slots"):
        check_placement(lopsided, task)


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(PlacementError, match="solver alsa cannot share total_redundant between layers; take one of"):
        solve(problem(2, (0, 2)), spec("alsa", 2))
    with pytest.raises(PlacementError, match="shares 4 redundant slots, the problem 2"):
        solve(problem(2, (0, 2)), spec("eplb", 4))
    with pytest.raises(PlacementInfeasible, match=r"3 layers of at least 2 redundant slots take 6.*is 4: 2 short"):
        problem(4, (2, 4))
