"""Exact and large solvers as the facade sees them: problem and spec in, a plan and what it proves out.

The solvers themselves are functions of arrays: `chain`, `alsa`, `affinity`, `affinity_programmes`, `load_programmes`,
`migration`. Affinity solvers assume context-coherent execution and place each expert once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from placement.affinity import IntArray, tokens_that_stay, two_stage
from placement.affinity_bounds import affinity_bound
from placement.affinity_programmes import FormName, solve_affinity
from placement.alsa import alsa
from placement.balance import swapped
from placement.bounds import busiest_rank_bound
from placement.chain import chain_exact
from placement.improvements import improvements
from placement.load_programmes import solve_load
from placement.migration import replan
from placement.plan import FloatArray, Placement
from placement.problem import PlacementProblem, placement_from
from placement.redivision import best_redivided
from placement.saa import SAMPLED_STEPS
from placement.sample import learned_steps
from placement.solver import Answer, Solver
from scenarios.errors import PlacementError, PlacementInfeasible
from scenarios.placement_specs import PlacementSpec, SolverName

ROUNDING = 1e-12  # relative; sums of tokens differ by less between orders of summation
MOST_CELLS = 100_000  # variables of a programme; PuLP takes 10 s to write more, and HiGHS does not get beyond the start


def plan_chain_exact(problem: PlacementProblem, spec: PlacementSpec) -> Answer:
    """The plan with the fewest hops, proved; raises PlacementInfeasible beyond about 8 experts a layer."""
    transitions = _transitions(problem)
    ranks, stay = chain_exact(transitions, problem.n_ranks)
    return Answer(placement=_placed(ranks, problem, spec), bound=_hops(transitions, stay))


def plan_alsa(problem: PlacementProblem, spec: PlacementSpec) -> Answer:
    """The plan of alternating assignments, with the bound on pairs of layers."""
    transitions = _transitions(problem)
    rng = np.random.default_rng([problem.seed, spec.seed])
    return _with_pair_bound(alsa(transitions, problem.n_ranks, rng), problem, spec)


def plan_two_stage(problem: PlacementProblem, spec: PlacementSpec) -> Answer:
    """MoETuner's plan: groups of equal load, then ranks for them; with the bound on pairs of layers."""
    _transitions(problem)
    return _with_pair_bound(two_stage(_transitions(problem), problem.loads, problem.n_ranks), problem, spec)


def plan_exflow(problem: PlacementProblem, spec: PlacementSpec) -> Answer:
    """ExFlow's programme from the contiguous plan, as published, within `spec.time_limit`."""
    n_layers, n_experts = problem.loads.shape
    start = np.tile(np.arange(n_experts) // problem.slots_per_rank, (n_layers, 1))
    return _by_programme(problem, spec, start, "exflow")


def plan_ilp_affinity(problem: PlacementProblem, spec: PlacementSpec) -> Answer:
    """The transport programme from the plan of alternating assignments, within `spec.time_limit`."""
    rng = np.random.default_rng([problem.seed, spec.seed])
    return _by_programme(problem, spec, alsa(_transitions(problem), problem.n_ranks, rng), "transport")


def plan_ilp_load(problem: PlacementProblem, spec: PlacementSpec) -> Answer:
    """The load programme of every layer for the fitted part as a whole, within `spec.time_limit` together."""
    return _by_layers(problem, spec, problem.loads[None])


def plan_ilp_saa(problem: PlacementProblem, spec: PlacementSpec) -> Answer:
    """The same for the mean over the fitted steps: sample average approximation, solved exactly where time allows."""
    return _by_layers(problem, spec, problem.loads[None] if problem.batch_loads is None else problem.batch_loads)


def plan_migrate(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """The best plan found within `spec.moves` moved copies of the plan in force, on the fitted steps that `saa` learns.

    Raises PlacementError where the plan in force has other slots than the problem.
    """
    current, steps = problem.current, problem.batch_loads
    if current is None or steps is None:
        raise PlacementError("migrate needs problem.current, the plan in force, and problem.batch_loads")
    if current.n_slots != problem.n_slots or (current.slots_per_rank() != problem.slots_per_rank).any():
        raise PlacementError(
            f"the plan in force has {current.n_slots} slots a layer, the problem {problem.n_slots} with "
            f"{problem.slots_per_rank} on every rank; migrate keeps the slots: set redundant {current.redundant_slots}"
        )
    loads = steps[learned_steps(len(steps), SAMPLED_STEPS)]
    most = problem.n_layers * problem.n_slots if spec.moves is None else spec.moves
    found = replan(loads, current.expert_of_slot.astype(np.intp), problem.n_ranks, most_moves=most)
    return placement_from(found.expert_of_slot, problem, spec)


def _affinity(plan: Callable[[PlacementProblem, PlacementSpec], Answer]) -> Solver:
    return Solver(plan=plan, objective="hops", execution="context-coherent", needs=("transitions",))


EXACT_SOLVERS: dict[SolverName, Solver] = {
    "chain-exact": _affinity(plan_chain_exact),
    "alsa": _affinity(plan_alsa),
    "two-stage": _affinity(plan_two_stage),
    "exflow": _affinity(plan_exflow),
    "ilp-affinity": _affinity(plan_ilp_affinity),
    "ilp-load": Solver(plan=plan_ilp_load),
    "ilp-saa": Solver(plan=plan_ilp_saa, objective="batch-load", needs=("batch_loads",)),
    "migrate": Solver(plan=plan_migrate, objective="batch-load", needs=("current", "batch_loads"), adjusts=True),
}


def _transitions(problem: PlacementProblem) -> FloatArray:
    if problem.redundant:
        raise PlacementInfeasible(
            f"affinity solvers place each expert once, but {problem.redundant} redundant slots are asked for; "
            "set redundant 0, or use eplb, saa or joint"
        )
    if problem.transitions is None:
        raise PlacementError("affinity solvers need problem.transitions")
    return problem.transitions


def _hops(transitions: FloatArray, stay: float) -> float:
    """Transitions that do not stay [tokens]; 0 where the difference is rounding."""
    total = float(transitions.sum())
    return total - stay if total - stay > ROUNDING * total else 0.0


def _placed(ranks: IntArray, problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """The placement of intp[layer, expert] ranks: experts of a rank ascending in its slots."""
    return placement_from(np.argsort(ranks, axis=1, kind="stable"), problem, spec)


def _with_pair_bound(ranks: IntArray, problem: PlacementProblem, spec: PlacementSpec) -> Answer:
    transitions = _transitions(problem)
    most = max(affinity_bound(transitions, problem.n_ranks), tokens_that_stay(transitions, ranks))
    return Answer(placement=_placed(ranks, problem, spec), bound=_hops(transitions, most))


def _by_programme(problem: PlacementProblem, spec: PlacementSpec, start: IntArray, form: FormName) -> Answer:
    """The programme's plan; where it would be too large, the start and the bound on pairs of layers, as stopped."""
    transitions = _transitions(problem)
    cells = transitions.size * (problem.n_ranks if form == "transport" else 1)
    if cells > MOST_CELLS:
        answer = _with_pair_bound(start, problem, spec)
        return Answer(placement=answer.placement, bound=answer.bound, stopped=True)
    found = solve_affinity(transitions, problem.n_ranks, start, form=form, time_limit_s=spec.time_limit)
    return Answer(
        placement=_placed(found.rank_of_expert, problem, spec),
        bound=_hops(transitions, found.bound),
        stopped=found.status != "optimal",
    )


def _start(loads: FloatArray, slots: IntArray, n_ranks: int) -> IntArray:
    """A good plan of one layer to begin from: re-divided for one scenario, improved change by change for several."""
    if len(loads) == 1:
        return best_redivided(loads[0], slots, n_ranks)
    return improvements(loads, slots, n_ranks, most_moves=len(slots))[-1].expert_of_slot


def _by_layers(problem: PlacementProblem, spec: PlacementSpec, batch_loads: FloatArray) -> Answer:
    """Each layer by its own programme: an equal share of what is left of the time, and the start where that is up."""
    if problem.speeds is not None and np.ptp(problem.speeds) > 0:
        raise PlacementError("the load programme takes ranks to be alike, but problem.speeds differ; use balance")
    starts = swapped(problem, spec).expert_of_slot.astype(np.intp)
    too_large = problem.n_slots * problem.n_ranks * (problem.redundant + 1) > MOST_CELLS
    end_s = time.perf_counter() + spec.time_limit
    slots, bound, stopped = [], 0.0, False
    for layer, first in enumerate(starts):
        loads = batch_loads[:, layer]
        start = _start(loads, first, problem.n_ranks)
        left_s = (end_s - time.perf_counter()) / (problem.n_layers - layer)
        if too_large or left_s <= 0:
            slots.append(start)
            bound += float(busiest_rank_bound(loads, n_slots=problem.n_slots, n_ranks=problem.n_ranks).mean())
            stopped = True
            continue
        found = solve_load(loads, start, problem.n_ranks, time_limit_s=left_s)
        slots.append(found.expert_of_slot)
        bound += found.bound
        stopped = stopped or found.status != "optimal"
    return Answer(placement=placement_from(np.stack(slots), problem, spec), bound=bound, stopped=stopped)
