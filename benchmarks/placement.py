"""Speed of placement: balancing and annealing at the size of DeepSeek-V3, and the evaluation of one plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.cases import N_EXPERTS, nodes_of_eight, v3_trace
from benchmarks.machine import Row, best_s
from benchmarks.planes import chosen
from hwmodels.cluster import build_cluster
from placement.exchange_time import Machine
from placement.plan import Placement
from placement.problem import PlacementProblem, with_sample
from placement.reduction import reduce_trace
from placement.sample import TokenSample
from placement.solve import solve
from scenarios.catalog import find_model
from scenarios.cluster_specs import ClusterSpec
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ExchangeSpec
from traces.stats import expert_loads

N_RANKS, REDUNDANT = 32, 32


def placement_rows() -> list[Row]:
    """All 58 layers of 256 experts on 32 devices; one layer of 51,200 tokens on 128 devices with 384 slots."""
    problem = v3_problem()
    rows = [
        Row(
            goal=f"{solver}, DeepSeek-V3 on 32 devices, all layers",
            unit="CPU s",
            target=target,
            measured=best_s(lambda s=solver: solve(problem, PlacementSpec(solver=s, redundant=REDUNDANT)), repeats=n),
            at_most=True,
        )
        for solver, target, n in (("balance", 0.1, 5), ("joint", 60.0, 1))
    ]
    return rows + [_evaluation_row(speed) for speed in ("numpy", "numba")]


def v3_problem() -> PlacementProblem:
    """DeepSeek-V3's routing, made up, on four nodes of eight H200."""
    trace = v3_trace(32768, np.random.default_rng(0))
    machine = Machine(
        model=find_model("deepseek-v3", Path()),
        cluster=build_cluster(ClusterSpec(node="h200-sxm-8", nodes=4)),
        layout=nodes_of_eight(N_RANKS),
        exchange=ExchangeSpec(),
    )
    problem = PlacementProblem(
        loads=expert_loads(trace).astype(np.float64),
        n_ranks=N_RANKS,
        ranks_per_node=8,
        redundant=REDUNDANT,
        n_groups=8,
        machine=machine,
    )
    tokens = np.random.default_rng(1).integers(0, trace.n_tokens, (16, N_RANKS, 64))
    return with_sample(problem, TokenSample(trace=trace, tokens=tokens), ["batch_loads"])


def _evaluation_row(speed: str) -> Row:
    """Loads of slots and deduplicated traffic of one layer."""
    trace = v3_trace(51_200, np.random.default_rng(0), n_layers=1)
    tokens = np.arange(51_200).reshape(1, 128, 400)
    slots = np.random.default_rng(2).permutation(np.arange(384) % N_EXPERTS)[None]
    plan = Placement.from_slots(slots, 128, n_experts=N_EXPERTS, name="384 slots")
    with chosen(speed):
        work = lambda: reduce_trace(trace, tokens, plan, nodes_of_eight(128))  # noqa: E731
        work()
        seconds = best_s(work)
    goal = f"evaluating a plan, 51,200 tokens of one layer, {speed}"
    return Row(goal=goal, unit="CPU ms", target=10, measured=seconds * 1e3, at_most=True)
