"""The placement problem: what a solver is told, checked once for all solvers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from placement.plan import FloatArray, Placement
from scenarios.errors import PlacementError, PlacementInfeasible
from scenarios.specs import PlacementSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementProblem:
    """Expert loads and the slots to fill; all ranks hold the same number of slots.

    loads           float64[layer, expert]  tokens of the fitted part of the trace; a layer may have none.
    ranks_per_node  ranks of a node; all ranks lie in one node where there are fewer.
    redundant       replica slots of a layer, over all ranks together.
    n_groups        expert groups of group-limited routing (1: none), equal and consecutive.
    seed            seed of the scenario; a plan's own seed counts beside it.

    Raises PlacementError where a value is malformed, PlacementInfeasible where no equal filling of the ranks exists.
    """

    loads: FloatArray
    n_ranks: int
    ranks_per_node: int
    redundant: int = 0
    n_groups: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "loads", _read_only_loads(self.loads))
        _check_numbers(self)
        _check_feasible(self.n_experts, self.n_ranks, self.redundant)

    @property
    def n_layers(self) -> int:
        """Number of MoE layers."""
        return int(self.loads.shape[0])

    @property
    def n_experts(self) -> int:
        """Logical experts of a layer."""
        return int(self.loads.shape[1])

    @property
    def n_slots(self) -> int:
        """Slots of a layer, over all ranks."""
        return self.n_experts + self.redundant

    @property
    def slots_per_rank(self) -> int:
        """Slots of a layer on each rank."""
        return self.n_slots // self.n_ranks

    @property
    def n_nodes(self) -> int:
        """Nodes over which the ranks spread."""
        return max(1, self.n_ranks // self.ranks_per_node)

    def loads_or_uniform(self) -> FloatArray:
        """The loads [tokens], float64[layer, expert], with 1 for every expert of a layer without any token."""
        empty = self.loads.sum(axis=1, keepdims=True) == 0
        return np.where(empty, 1.0, self.loads)


def placement_from(expert_of_slot: ArrayLike, problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """The placement of a solver's int[layer, slot], with the split and the name that `spec` asks for."""
    return Placement.from_slots(
        expert_of_slot,
        problem.n_ranks,
        n_experts=problem.n_experts,
        name=plan_name(spec),
        split=spec.split,
    )


def plan_name(spec: PlacementSpec) -> str:
    """Name of a plan in tables: the user's, or solver, replica slots and options that differ from the default."""
    if spec.name is not None:
        return spec.name
    policy = {None: "", True: "-hierarchical", False: "-global"}[spec.hierarchical if spec.solver == "eplb" else None]
    replicas = f"+{spec.redundant}" if spec.redundant else ""
    split = f" {spec.split}" if spec.split != "even" else ""
    seed = f" seed {spec.seed}" if spec.solver == "random" and spec.seed else ""
    return f"{spec.solver}{policy}{replicas}{split}{seed}"


def _read_only_loads(values: ArrayLike) -> FloatArray:
    loads = np.array(values, dtype=np.float64)
    if loads.ndim != 2 or loads.size == 0:
        raise PlacementError(f"loads must be a table [layer, expert], got shape {loads.shape}")
    wrong = ~np.isfinite(loads) | (loads < 0)
    if wrong.any():
        layer, expert = (int(i) for i in np.argwhere(wrong)[0])
        raise PlacementError(f"load of layer {layer}, expert {expert} is {loads[layer, expert]}; tokens are >= 0")
    loads.setflags(write=False)
    return loads


def _check_numbers(problem: PlacementProblem) -> None:
    for field, least in (("n_ranks", 1), ("ranks_per_node", 1), ("redundant", 0), ("n_groups", 1), ("seed", 0)):
        if getattr(problem, field) < least:
            raise PlacementError(f"{field} is {getattr(problem, field)}, at least {least} is needed")
    if problem.n_ranks > problem.ranks_per_node and problem.n_ranks % problem.ranks_per_node:
        raise PlacementError(f"{problem.n_ranks} ranks do not fill nodes of {problem.ranks_per_node} ranks")
    if problem.n_experts % problem.n_groups:
        raise PlacementError(f"{problem.n_experts} experts are not divisible into {problem.n_groups} groups")


def _check_feasible(n_experts: int, n_ranks: int, redundant: int) -> None:
    most = n_experts * (n_ranks - 1)
    if redundant > most:
        raise PlacementInfeasible(
            f"redundant is {redundant}, but {n_experts} experts on {n_ranks} ranks can use at most {most}: "
            f"beyond that a rank holds an expert twice"
        )
    n_slots = n_experts + redundant
    excess = n_slots % n_ranks
    if excess == 0:
        return
    replicas = [n for n in (redundant - excess, redundant - excess + n_ranks) if 0 <= n <= most]
    divisors = [n for n in range(1, n_slots + 1) if n_slots % n == 0]
    ranks = [max(n for n in divisors if n < n_ranks), *(n for n in divisors if n > n_ranks)][:2]
    raise PlacementInfeasible(
        f"{n_experts} experts + {redundant} redundant = {n_slots} slots do not divide over {n_ranks} ranks; "
        f"redundant {' or '.join(map(str, replicas))} would, or {' or '.join(map(str, ranks))} ranks"
    )
