"""`auto`: the best plan of several solvers and numbers of spare slots, by replay of the fitted steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.balance import balance
from placement.eplb import eplb
from placement.joint import joint_from, sampled_steps
from placement.moe_time import moe_times
from placement.plan import FloatArray, Placement
from placement.problem import PlacementProblem, SharedSlots, plan_name
from placement.saa import saa
from scenarios.errors import PlacementError, PlacementInfeasible
from scenarios.placement_specs import PlacementSpec, SolverName, SplitName


def auto(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """The plan of least MoE time by replay of fitted steps among EPLB (both policies), balance, saa and joint.

    All with each number of spare slots of `spec.spare`, and replicas in turn or levelled (lp, lp-local) unless `spec`
    says which. Plans are compared on the steps that `joint` was not annealed on, since it knows the others by heart; a
    plan that is slower than a variant of EPLB on all fitted steps is out. Raises PlacementInfeasible where the ranks
    have room for none, PlacementError without steps and machine.
    """
    machine, sample = problem.machine, problem.sample
    if machine is None or sample is None:
        raise PlacementError("auto needs problem.machine and problem.sample")
    plans = list(candidates(problem, spec))
    if not plans:
        raise PlacementInfeasible(
            f"none of spare {list(spec.spare)} slots a rank fits: {problem.slots_per_rank} slots a layer leave no room "
            "in memory, or would hold an expert twice; give a smaller `spare`, or take more ranks"
        )
    step_s = np.array([moe_times(machine, plan, sample, problem.speeds).step_s for plan in plans])
    best = plans[_chosen(step_s, [plan.name.startswith("eplb") for plan in plans], sampled_steps(sample))]
    return replace(best, name=f"{plan_name(spec)}: {best.name}" if spec.name is None else spec.name)


def _chosen(step_s: FloatArray, is_eplb: Sequence[bool], known: NDArray[np.int64]) -> int:
    """The plan that is fastest on the steps not `known`, of those no slower than the best EPLB on all steps.

    step_s  float64[plan, step]; where all steps are known, they decide.
    """
    all_s = step_s.mean(axis=1)
    unseen = np.setdiff1d(np.arange(step_s.shape[1]), known)
    unseen_s = step_s[:, unseen].mean(axis=1) if len(unseen) else all_s
    return int(np.where(all_s <= all_s[np.array(is_eplb)].min(), unseen_s, np.inf).argmin())


def candidates(problem: PlacementProblem, spec: PlacementSpec) -> Iterator[Placement]:
    """Every plan that `auto` replays, the cheapest to make first."""
    for redundant in redundancies(problem, spec):
        sized = replace(problem, redundant=redundant)

        def own(solver: SolverName, policy: bool | None = None, redundant: int = redundant) -> PlacementSpec:
            return PlacementSpec(solver=solver, redundant=redundant, seed=spec.seed, hierarchical=policy)

        by_load = [(eplb(sized, each), each) for each in (own("eplb"), own("eplb", policy=False))]
        by_load.append((balance(sized, own("balance")), own("balance")))
        on_steps = saa(sized, own("saa"))
        in_seconds = joint_from(on_steps, sized, own("joint"))
        for plan, each in (*by_load, (on_steps, own("saa")), (in_seconds, own("joint"))):
            yield from (renamed(plan, each, split) for split in splits(spec, redundant))


def redundancies(problem: PlacementProblem, spec: PlacementSpec) -> list[int]:
    """Redundant slots of a layer for each number of spare slots a rank that fits."""
    room = problem.memory.most_slots if problem.memory is not None else problem.n_experts
    sizes = sizes_of(problem.n_experts, problem.n_ranks, spec.spare)
    return [size for size in sizes if (problem.n_experts + size) // problem.n_ranks <= room]


def shared_slots(n_experts: int, n_ranks: int, spec: PlacementSpec) -> SharedSlots | None:
    """The replica slots that `spec` lets layers share, in sizes of `spec.spare` slots a rank; None where it does not.

    Raises PlacementInfeasible where no size fits.
    """
    if spec.total_redundant is None:
        return None
    sizes = sizes_of(n_experts, n_ranks, spec.spare)
    if not sizes:
        raise PlacementInfeasible(
            f"none of spare {list(spec.spare)} slots a rank fits: beyond {n_experts * (n_ranks - 1)} redundant slots "
            "an expert would lie twice on a rank; give a smaller `spare`"
        )
    return SharedSlots(total=spec.total_redundant, sizes=tuple(sizes))


def sizes_of(n_experts: int, n_ranks: int, spare: Sequence[int]) -> list[int]:
    """Redundant slots of a layer for each number of spare slots a rank that holds no expert twice, ascending."""
    least, most = least_redundant(n_experts, n_ranks), n_experts * (n_ranks - 1)
    return [size for size in (least + n * n_ranks for n in sorted(set(spare))) if size <= most]


def least_redundant(n_experts: int, n_ranks: int) -> int:
    """The fewest redundant slots with which all ranks hold equally many."""
    return -n_experts % n_ranks


def splits(spec: PlacementSpec, redundant: int) -> tuple[SplitName, ...]:
    """The splits to try: the one that `spec` names, or else, with replicas, in turn and levelled in both ways."""
    if "split" in spec.model_fields_set or redundant == 0:
        return (spec.split,)
    return ("even", "lp", "lp-local")


def renamed(plan: Placement, spec: PlacementSpec, split: SplitName) -> Placement:
    """The plan with another split, named after it."""
    return replace(plan, split=split, name=plan_name(spec.model_copy(update={"split": split})))
