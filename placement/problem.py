"""The placement problem: what a solver is told, checked once for all solvers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from placement.exchange_time import Machine
from placement.plan import FloatArray, Placement
from placement.sample import TokenSample, batch_loads, coactivation, transitions
from scenarios.errors import PlacementError, PlacementInfeasible
from scenarios.placement_specs import PlacementSpec
from traces.routing import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertMemory:
    """Room for experts: `slot_bytes` of one slot in all layers together, `free_bytes` float64[rank] for all of them."""

    slot_bytes: float
    free_bytes: FloatArray

    def __post_init__(self) -> None:
        if self.slot_bytes <= 0:
            raise PlacementError(f"a slot takes {self.slot_bytes} bytes; give more than 0")
        object.__setattr__(self, "free_bytes", _read_only("free_bytes", self.free_bytes, ("rank",)))

    @property
    def most_slots(self) -> int:
        """Slots a layer that every rank has room for."""
        return int(self.free_bytes.min() // self.slot_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSlots:
    """Replica slots that layers share: at most `total` in all, and one of `sizes` (ascending) in each layer."""

    total: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementProblem:
    """Expert loads and the slots to fill; all ranks hold the same number of slots.

    What follows `seed` may be left out; a solver says what it needs (docs/reference/placement.md).

    loads           float64[layer, expert]  tokens of the fitted part of the trace; a layer may have none.
    ranks_per_node  ranks of a node; all ranks lie in one node where there are fewer.
    redundant       replica slots of a layer, over all ranks together.
    shared          replica slots of all layers together, where layers may differ; `redundant` is the most of a layer.
    n_groups        expert groups of group-limited routing (1: none), equal and consecutive.
    seed            seed of the scenario; a plan's own seed counts beside it.
    batch_loads     float64[batch, layer, expert]: tokens of every fitted step.
    transitions     float64[layer - 1, expert, expert]: tokens with expert i in a layer and j in the next.
    coactivation    float64[layer, expert, expert]: tokens with both experts in one layer; diagonal: loads.
    sample          the fitted steps token by token.
    machine         whose laws price a plan in seconds.
    speeds          float64[rank]: speed of the rank's experts over the machine's device; left out: 1.
    memory          room for slots.
    current         the plan in force.

    Raises PlacementError where a value is malformed, PlacementInfeasible where no equal filling of the ranks exists, or
    a rank has no room for its slots.
    """

    loads: FloatArray
    n_ranks: int
    ranks_per_node: int
    redundant: int = 0
    shared: SharedSlots | None = None
    n_groups: int = 1
    seed: int = 0
    batch_loads: FloatArray | None = None
    transitions: FloatArray | None = None
    coactivation: FloatArray | None = None
    sample: TokenSample | None = None
    machine: Machine | None = None
    speeds: FloatArray | None = None
    memory: ExpertMemory | None = None
    current: Placement | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loads", _read_only("loads", self.loads, ("layer", "expert")))
        _check_numbers(self)
        for redundant in (self.redundant,) if self.shared is None else self.shared.sizes:
            _check_feasible(self.n_experts, self.n_ranks, redundant)
        _check_shared(self)
        _check_tables(self)
        _check_memory(self)

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
    if spec.total_redundant is not None:
        replicas = f"+{spec.total_redundant} shared"
    split = f" {spec.split}" if spec.split != "even" else ""
    seed = f" seed {spec.seed}" if spec.solver == "random" and spec.seed else ""
    return f"{spec.solver}{policy}{replicas}{split}{seed}"


COUNTED: dict[str, Callable[[TokenSample], FloatArray]] = {
    "batch_loads": batch_loads,
    "transitions": transitions,
    "coactivation": coactivation,
}


def with_sample(problem: PlacementProblem, sample: TokenSample, needs: Iterable[str] = COUNTED) -> PlacementProblem:
    """The problem with `sample` and those tables of `needs` that are counted in it; `loads` stay as they are."""
    counted: dict[str, Any] = {field: count(sample) for field, count in COUNTED.items() if field in set(needs)}
    return replace(problem, sample=sample, **counted)


def _read_only(
    field: str, values: ArrayLike, axes: tuple[str, ...], shape: tuple[int, ...] | None = None
) -> FloatArray:
    """An own float64 copy of a table of tokens (or bytes) >= 0, of `shape` where it is given."""
    table = np.array(values, dtype=np.float64)
    if table.ndim != len(axes) or (table.size == 0 and shape is None):
        raise PlacementError(f"{field} must be a table [{', '.join(axes)}], got shape {table.shape}")
    if shape is not None and table.shape[-len(shape) :] != shape:
        raise PlacementError(f"{field} has shape {table.shape}, expected {shape} [{', '.join(axes[-len(shape) :])}]")
    wrong = ~np.isfinite(table) | (table < 0)
    if wrong.any():
        place = [int(i) for i in np.argwhere(wrong)[0]]
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=True))
        raise PlacementError(f"{field} of {where}: {table[tuple(place)]} is not a finite number >= 0")
    table.setflags(write=False)
    return table


def _check_tables(problem: PlacementProblem) -> None:
    """Shapes of what may be left out."""
    n_layers, n_experts, n_ranks = problem.n_layers, problem.n_experts, problem.n_ranks
    pair = ("expert", "expert")
    for field, axes, shape in (
        ("batch_loads", ("batch", "layer", "expert"), (n_layers, n_experts)),
        ("transitions", ("layer", *pair), (n_layers - 1, n_experts, n_experts)),
        ("coactivation", ("layer", *pair), (n_layers, n_experts, n_experts)),
        ("speeds", ("rank",), (n_ranks,)),
    ):
        if getattr(problem, field) is not None:
            object.__setattr__(problem, field, _read_only(field, getattr(problem, field), axes, shape))
    if problem.batch_loads is not None and len(problem.batch_loads) == 0:
        raise PlacementError("batch_loads holds no batch; leave it out, or give one")
    if problem.speeds is not None and problem.speeds.min() <= 0:
        raise PlacementError(f"the slowest rank has speed {problem.speeds.min()}; speeds are above 0")
    for name, fits in (("sample", problem.sample and problem.sample.trace), ("current", problem.current)):
        if isinstance(fits, RoutingTrace | Placement) and (fits.n_layers, fits.n_experts) != (n_layers, n_experts):
            raise PlacementError(
                f"{name} has {fits.n_layers} layers of {fits.n_experts} experts, the problem {n_layers} of {n_experts}"
            )
    if problem.current is not None and problem.current.n_ranks != n_ranks:
        raise PlacementError(f"current has {problem.current.n_ranks} ranks, the problem {n_ranks}")


def _check_memory(problem: PlacementProblem) -> None:
    memory, needed = problem.memory, problem.slots_per_rank
    if memory is None:
        return
    if memory.free_bytes.shape != (problem.n_ranks,):
        raise PlacementError(f"memory.free_bytes has shape {memory.free_bytes.shape}, expected ({problem.n_ranks},)")
    if needed > memory.most_slots:
        rank = int(memory.free_bytes.argmin())
        raise PlacementInfeasible(
            f"{needed} slots a layer take {needed * memory.slot_bytes / 2**30:,.1f} GiB on each rank, but rank {rank} "
            f"has {memory.free_bytes[rank] / 2**30:,.1f} GiB for them; lower `redundant`, or take more ranks"
        )


def _check_shared(problem: PlacementProblem) -> None:
    shared = problem.shared
    if shared is None:
        return
    if not shared.sizes or problem.redundant != max(shared.sizes):
        raise PlacementError(f"redundant is {problem.redundant}, but layers may take one of {list(shared.sizes)}")
    least = problem.n_layers * min(shared.sizes)
    if least > shared.total:
        raise PlacementInfeasible(
            f"{problem.n_layers} layers of at least {min(shared.sizes)} redundant slots take {least}, but "
            f"total_redundant is {shared.total}: {least - shared.total} short; raise it, or offer fewer `spare` slots"
        )


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
