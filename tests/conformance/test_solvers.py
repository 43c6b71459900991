"""Every placement solver through one suite; a solver that is named but missing, or the reverse, fails it."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import placement.joint as joint_module
import placement.saa as saa_module
from placement.bounds import busiest_rank_bound
from placement.checker import check_placement
from placement.exact import EXACT_SOLVERS
from placement.exchange_time import Machine
from placement.layout import ExpertLayout
from placement.problem import PlacementProblem, with_sample
from placement.reduction import reduce_trace
from placement.sample import TokenSample
from placement.solve import SOLVERS, Solved, solve
from scenarios.placement_specs import PlacementSpec, SolverName, SplitName
from scenarios.schedule_specs import ExchangeSpec
from sim.pricing import price
from sim.program import Program, Step, Work, compile_program
from sim.vector import execute
from tests.small import tiny_cluster, tiny_model, tiny_setting, trace_of

# Exact and affinity solvers need small problems or time: test_exact_solvers.py is their suite.
GENERAL = [solver for solver in SOLVERS if solver not in EXACT_SOLVERS]
EMPTY_STEP = Step(layers=(), head=Work("head"))

ROOT = Path(__file__).resolve().parents[2]


def loads_of(kind: str, n_layers: int, n_experts: int) -> np.ndarray:
    """Loads of a kind [tokens], float64[layer, expert]."""
    rng = np.random.default_rng([n_layers, n_experts])
    loads = {
        "skewed": np.round(1000 * rng.lognormal(0, 1, (n_layers, n_experts))),
        "ties": rng.integers(0, 3, (n_layers, n_experts)).astype(np.float64),
        "one hot": np.where(np.arange(n_experts) == 1, 999.0, 0.0) * np.ones((n_layers, 1)),
        "idle layer": np.where(np.arange(n_layers)[:, None] == 0, 0.0, rng.integers(1, 99, (n_layers, n_experts))),
    }[kind]
    return np.asarray(loads)


# kind of loads, layers, experts, ranks, ranks per node, redundant slots, expert groups
PROBLEMS = [
    ("skewed", 1, 8, 2, 8, 0, 1),
    ("skewed", 3, 8, 8, 8, 0, 1),
    ("ties", 4, 12, 8, 4, 4, 4),
    ("ties", 2, 6, 4, 2, 14, 3),
    ("one hot", 2, 8, 4, 4, 24, 1),
    ("one hot", 2, 16, 4, 2, 8, 4),
    ("idle layer", 3, 4, 6, 8, 2, 1),
    ("idle layer", 2, 64, 8, 8, 8, 1),
    ("skewed", 2, 60, 16, 8, 20, 1),
    ("skewed", 3, 256, 32, 8, 0, 8),
    ("skewed", 3, 256, 32, 8, 32, 8),
]


@cache
def problem_of(row: tuple[str, int, int, int, int, int, int], seed: int = 0) -> PlacementProblem:
    """The row as a problem that lacks nothing: three steps of tokens whose experts follow the loads, and a machine."""
    kind, n_layers, n_experts, n_ranks, ranks_per_node, redundant, n_groups = row
    loads = loads_of(kind, n_layers, n_experts)
    per_node = min(n_ranks, ranks_per_node)
    problem = PlacementProblem(
        loads=loads,
        n_ranks=n_ranks,
        ranks_per_node=ranks_per_node,
        redundant=redundant,
        n_groups=n_groups,
        seed=seed,
        machine=Machine(
            model=tiny_model(n_layers=n_layers, n_experts=n_experts),
            cluster=tiny_cluster(n_ranks // per_node, per_node),
            layout=ExpertLayout(n_devices=n_ranks, devices_per_node=per_node),
            exchange=ExchangeSpec(),
        ),
    )
    ids = np.stack([drawn_ids(row, layer) for layer, row in enumerate(loads)])
    tokens = np.arange(3 * n_ranks * 4).reshape(3, n_ranks, 4) % ids.shape[2]
    return with_sample(problem, TokenSample(trace=trace_of(ids, n_experts), tokens=tokens))


def drawn_ids(loads: np.ndarray, layer: int, n_tokens: int = 96) -> np.ndarray:
    """Two experts for each token, drawn by load and never twice the same, int[2, token]; each layer alone."""
    rng = np.random.default_rng([layer, len(loads)])
    scores = np.log(loads + 1e-9) + rng.gumbel(size=(n_tokens, len(loads)))
    return np.argsort(-scores, axis=1)[:, :2].T


def solved(solver: SolverName, problem: PlacementProblem, seed: int = 0) -> Solved:
    if SOLVERS[solver].resizes:
        least = -problem.n_experts % problem.n_ranks
        return solve(replace(problem, redundant=least), PlacementSpec(solver=solver, seed=seed))
    return solve(problem, PlacementSpec(solver=solver, redundant=problem.redundant, seed=seed))


def judged(result: Solved, problem: PlacementProblem) -> PlacementProblem:
    """The problem with as many slots as the plan has."""
    return replace(problem, redundant=result.placement.redundant_slots)


def busiest_by_loops(result: Solved, problem: PlacementProblem) -> float:
    """Sum over layers of the busiest rank's load under even split, with nothing but loops."""
    total = 0.0
    slots = result.placement.expert_of_slot.tolist()
    for experts, loads in zip(slots, problem.loads.tolist(), strict=True):
        room = len(experts) // problem.n_ranks
        shares = [loads[expert] / experts.count(expert) for expert in experts]
        total += max(sum(shares[rank * room : (rank + 1) * room]) for rank in range(problem.n_ranks))
    return total


def objective_by_others(result: Solved, problem: PlacementProblem) -> float:
    """The objective by another way than the facade's: loops, or the simulator's own pricing and executor."""
    if result.objective_name == "load":
        return busiest_by_loops(result, problem)
    if result.objective_name == "batch-load":
        assert problem.batch_loads is not None
        steps = [replace(problem, loads=loads, batch_loads=None, sample=None) for loads in problem.batch_loads]
        return float(np.mean([busiest_by_loops(result, step) for step in steps]))
    assert result.objective_name == "time"
    return simulated_moe_s(result, problem)


def simulated_moe_s(result: Solved, problem: PlacementProblem) -> float:
    """Mean time of a step that is nothing but MoE layers, each begun by all devices at once, in the vector executor."""
    assert problem.machine is not None
    assert problem.sample is not None
    machine, sample = problem.machine, problem.sample
    setting = tiny_setting(machine.model, machine.cluster, sample.trace, tokens_per_device=sample.tokens.shape[2])
    setting = replace(setting, batches=replace(setting.batches, tokens=sample.tokens))
    reduction = reduce_trace(sample.trace, sample.tokens, result.placement, machine.layout)
    prices = price(setting, result.placement, reduction, machine.exchange)
    total = 0.0
    for layer in range(problem.n_layers):
        program = Program()
        previous = program.exchange(Work("dispatch", layer, 0), after=None)
        previous = program.compute(Work("experts", layer, 0), after=previous)
        program.exchange(Work("combine", layer, 0), after=previous)
        op_list = compile_program(lambda new, _step, ops=program.ops: new.ops.extend(ops), EMPTY_STEP)
        finished = execute(op_list, [prices.of(op.work) for op in program.ops])
        total += finished.end_s.max(axis=(0, -1)).mean()
    return float(total)


def test_every_named_solver_exists_and_no_other() -> None:
    assert set(SOLVERS) == set(get_args(SolverName))


@pytest.fixture(autouse=True)
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must hold of a plan holds after few rounds, too."""
    monkeypatch.setattr(joint_module, "ROUNDS_PER_SLOT", 1)
    monkeypatch.setattr(saa_module, "ROUNDS_PER_SLOT", 1)


def cases() -> Iterator[Any]:
    """Every solver on every problem; searches on the large ones are slow."""
    for solver, row in product(GENERAL, PROBLEMS):
        slow = bool(SOLVERS[solver].needs) and (solver == "auto" or row[1] * row[2] > 40)
        name = "-".join(map(str, (solver, *row)))
        yield pytest.param(solver, row, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("solver", "row"), list(cases()))
def test_plans_are_valid_and_judged_rightly(solver: SolverName, row: tuple[str, int, int, int, int, int, int]) -> None:
    result = solved(solver, problem_of(row))
    problem = judged(result, problem_of(row))
    check_placement(result.placement, problem)
    assert (result.placement.slots_per_rank() == problem.slots_per_rank).all()
    assert result.objective == pytest.approx(objective_by_others(result, problem), rel=1e-12)
    assert result.objective >= result.bound * (1 - 1e-9)
    assert (result.gap == 0) == (result.objective <= result.bound)
    if result.bound > 0:
        assert result.gap == pytest.approx((result.objective - result.bound) / result.bound, abs=1e-9)
    assert (result.status == "optimal") == (result.gap <= 1e-9)
    assert result.time_s >= 0
    assert (result.objective_name, result.execution) == (SOLVERS[solver].objective, SOLVERS[solver].execution)
    if result.objective_name == "load":
        bound = busiest_rank_bound(problem.loads, n_slots=problem.n_slots, n_ranks=problem.n_ranks).sum()
        assert result.bound == bound >= problem.loads.sum() / problem.n_ranks * (1 - 1e-12)


@pytest.mark.parametrize("split", get_args(SplitName))
@pytest.mark.parametrize(
    "solver", [pytest.param(name, marks=[pytest.mark.slow] if name == "auto" else []) for name in GENERAL]
)
def test_split_and_name_are_passed_on(solver: SolverName, split: SplitName) -> None:
    extra = {} if SOLVERS[solver].resizes else {"redundant": 4}
    spec = PlacementSpec(solver=solver, split=split, name="mine", **extra)
    plan = solve(problem_of(PROBLEMS[2]), spec).placement
    assert (plan.split, plan.name) == (split, "mine")
    plan = solve(problem_of(PROBLEMS[2]), PlacementSpec(solver=solver, **extra)).placement
    assert plan.name == f"{solver}+4" or (solver == "auto" and plan.name.startswith("auto: "))


@pytest.mark.parametrize("solver", [name for name in GENERAL if not SOLVERS[name].resizes])
@pytest.mark.parametrize("row", [PROBLEMS[3], pytest.param(PROBLEMS[10], marks=pytest.mark.slow)], ids=["small", "V3"])
def test_a_layer_is_solved_the_same_alone(solver: SolverName, row: tuple[str, int, int, int, int, int, int]) -> None:
    whole = problem_of(row)
    assert whole.sample is not None
    assert whole.machine is not None
    trace = whole.sample.trace
    sample = TokenSample(trace=trace_of(trace.ids[:1], trace.n_experts), tokens=whole.sample.tokens)
    alone = with_sample(
        replace(whole, loads=whole.loads[:1], sample=None, batch_loads=None, transitions=None, coactivation=None),
        sample,
    )
    plans = [solved(solver, problem).placement.expert_of_slot[0] for problem in (whole, alone)]
    assert plans[0].tolist() == plans[1].tolist()


SEARCHES = {"saa", "joint", "auto"}


@pytest.mark.slow
def test_both_seeds_change_a_random_plan_and_searches_but_no_other() -> None:
    for solver in GENERAL:
        plans = [
            solved(solver, problem_of(PROBLEMS[3], seed), own).placement.expert_of_slot.tobytes()
            for seed, own in ((0, 0), (0, 1), (1, 0), (1, 0))
        ]
        assert plans[2] == plans[3]
        if solver not in SEARCHES:
            assert len(set(plans)) == (3 if solver == "random" else 1)


def test_random_layers_differ() -> None:
    plan = solved("random", problem_of(PROBLEMS[7])).placement
    assert plan.expert_of_slot[0].tolist() != plan.expert_of_slot[1].tolist()
    assert set(plan.replica_counts().ravel().tolist()) == {1, 2}


def fingerprint() -> str:
    """Hash of all plans of all solvers on some problems."""
    digest = hashlib.sha256()
    for solver in GENERAL:
        for row in PROBLEMS[2:6]:
            digest.update(solved(solver, problem_of(row, seed=5), seed=7).placement.expert_of_slot.tobytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_plans_are_the_same_in_another_process() -> None:
    short = "suite.joint_module.ROUNDS_PER_SLOT = suite.saa_module.ROUNDS_PER_SLOT = 1"  # as `short_searches` does here
    code = f"import tests.conformance.test_solvers as suite; {short}; print(suite.fingerprint())"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(printed) == 1
