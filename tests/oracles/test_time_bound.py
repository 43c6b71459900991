"""The bound on MoE time: below every plan of small problems (or many of them), and high where links decide."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest

from placement.destination_bounds import pairs_bound
from placement.exchange_time import Machine
from placement.layout import ExpertLayout
from placement.moe_time import expert_times_s, moe_times
from placement.objectives import OBJECTIVES
from placement.plan import Placement
from placement.problem import PlacementProblem, with_sample
from placement.reduction import reduce_trace
from placement.sample import TokenSample
from placement.time_bound import moe_time_bound_s
from scenarios.schedule_specs import ExchangeSpec
from tests.devices import link
from tests.oracles.placement_brute import fewest_visits_with_replicas
from tests.small import random_ids, tiny_cluster, tiny_model, trace_of

TIME = OBJECTIVES["time"]
MOST = 50  # plans tried of those that are possible
SLOW: dict[str, Any] = {"intra": link("1 MB/s", "5 us"), "inter": link("0.5 MB/s", "20 us")}


def problem_of(
    nodes: int, redundant: int, dedup: str, seed: int, *, tp: int = 1, fast: bool = False
) -> PlacementProblem:
    """One layer of four experts on four devices, two of each token's four choices, over links where copies decide."""
    n_experts, n_devices = 4, 4
    cluster = tiny_cluster(nodes, n_devices // nodes, **({} if fast else SLOW))
    layout = ExpertLayout(n_devices=n_devices, devices_per_node=n_devices // nodes, tp=tp)
    machine = Machine(
        model=tiny_model(n_layers=1, n_experts=n_experts),
        cluster=cluster,
        layout=layout,
        exchange=ExchangeSpec.model_validate({"dedup": dedup}),
    )
    trace = trace_of(random_ids((1, 2, 3 * n_devices * 5), n_experts, seed), n_experts)
    problem = PlacementProblem(
        loads=np.ones((1, n_experts)),
        n_ranks=layout.n_ranks,
        ranks_per_node=layout.ranks_per_node,
        redundant=redundant,
        machine=machine,
    )
    return with_sample(problem, TokenSample(trace=trace, tokens=np.arange(60).reshape(3, n_devices, 5)))


def every_plan(problem: PlacementProblem) -> list[Placement]:
    """All fillings of the ranks, or MOST drawn of them, each rank's slots in ascending order."""
    ranks = list(combinations_with_replacement(range(4), problem.slots_per_rank))
    found: list[list[int]] = [[]]
    for _ in range(problem.n_ranks):
        found = [[*slots, *rank] for slots in found for rank in ranks]
    whole = [slots for slots in found if set(slots) == set(range(4))]
    chosen = (
        whole if len(whole) <= MOST else [whole[i] for i in np.random.default_rng(0).choice(len(whole), MOST, False)]
    )
    return [Placement.from_slots([slots], problem.n_ranks, n_experts=4, name="any") for slots in chosen]


@pytest.mark.parametrize("dedup", ["none", "device", "node"])
@pytest.mark.parametrize(
    ("nodes", "tp", "redundant"), [(1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 2), (1, 1, 4), (2, 1, 4)]
)
def test_no_plan_is_below_the_bound(nodes: int, tp: int, redundant: int, dedup: str) -> None:
    for seed in range(2):
        problem = problem_of(nodes, redundant, dedup, seed, tp=tp)
        assert problem.machine is not None
        assert problem.sample is not None
        least = min(
            float(moe_times(problem.machine, plan, problem.sample).total_s.mean()) for plan in every_plan(problem)
        )
        assert moe_time_bound_s(problem)[0] <= least * (1 + 1e-9)


@pytest.mark.parametrize("speeds", [[1.0, 1.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0], [1.0, 1.5, 2.0, 4.0]])
@pytest.mark.parametrize("fast", [True, False])
def test_the_bound_holds_for_ranks_of_any_speed(speeds: list[float], fast: bool) -> None:
    for redundant in (0, 4):
        problem = replace(problem_of(1, redundant, "device", seed=1, fast=fast), speeds=np.array(speeds))
        least = min(TIME.value(plan, problem) for plan in every_plan(problem))
        assert 0 < TIME.bound(problem) <= least * (1 + 1e-9)


def test_the_time_objective_knows_speeds() -> None:
    """A hot expert on a rank of three times the speed: its layer takes what the simulated experts take over three."""
    usual = problem_of(1, 0, "device", seed=1, fast=True)
    assert usual.machine is not None
    assert usual.sample is not None
    hot = int(np.bincount(usual.sample.rows(0).ravel(), minlength=4)[:4].argmax())
    order = [e for e in range(4) if e != hot]
    plans = [Placement.from_slots([slots], 4, n_experts=4, name="p") for slots in ([*order, hot], [hot, *order])]
    speeds = np.array([1.0, 1.0, 1.0, 3.0])
    reduction = reduce_trace(usual.sample.trace, usual.sample.tokens, plans[0], usual.machine.layout)
    alone_s = expert_times_s(usual.machine, plans[0], reduction)
    times = moe_times(usual.machine, plans[0], usual.sample, speeds)
    assert times.experts_s.tolist() == (alone_s / speeds).max(axis=-1).tolist()
    on_fast, on_slow = (TIME.value(plan, replace(usual, speeds=speeds)) for plan in plans)
    assert on_fast < on_slow


def test_the_bound_knows_copies() -> None:
    """Where links decide it is most of the best plan's time; without copies it would be a thousandth."""
    problem = problem_of(1, 0, "device", seed=0)
    least = min(TIME.value(plan, problem) for plan in every_plan(problem))
    assert TIME.bound(problem) > 0.5 * least
    none, once = (TIME.bound(problem_of(1, 0, dedup, seed=0, tp=2)) for dedup in ("none", "device"))
    assert none > 1.05 * once
    assert TIME.bound(problem_of(1, 0, "device", seed=0, fast=True)) < 0.01 * least


@pytest.mark.parametrize("room", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_with_replicas_are_below_every_choice_of_copies(seed: int, room: int) -> None:
    experts = np.sort(np.argsort(np.random.default_rng(seed).random((20, 6)) * np.arange(1, 7), axis=1)[:, :3], axis=1)
    best = fewest_visits_with_replicas(experts, 6, 3, room)
    assert 1 <= pairs_bound(experts, n_experts=6, n_parts=3, n_slots=3 * room) <= best + 1e-9
