"""`joint`: annealing on predicted seconds, so that load, weights read and traffic are weighed as the machine does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.annealing import Cooling, anneal
from placement.joint_state import JointState
from placement.plan import Placement
from placement.problem import PlacementProblem, placement_from
from placement.saa import saa
from placement.sample import TokenSample, learned_steps
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec

SAMPLED_DEVICES = 256  # devices x steps: more steps generalise better, and cost in proportion
LEAST_STEPS = 2
ROUNDS_PER_SLOT = 40  # measured on captured decode: three times 20 lowers the held-out time by another 0.6 %
MOST_ROUNDS = 5000  # keeps 58 layers of 288 slots on 32 ranks within a minute


def joint(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """Swaps from the plan of `saa` that lower the mean MoE time of sampled fitted steps."""
    return joint_from(saa(problem, spec.model_copy(update={"split": "even"})), problem, spec)


def joint_from(start: Placement, problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """The same from another plan with as many slots."""
    if problem.machine is None or problem.sample is None:
        raise PlacementError("joint needs problem.machine and problem.sample")
    state = JointState(problem.machine, start, sampled(problem.sample), problem.speeds)
    cooling = cooling_of(problem)
    seeds = [[problem.seed, spec.seed, layer] for layer in range(problem.n_layers)]
    return placement_from(anneal(state, problem.n_ranks, cooling, seeds), problem, spec)


def sampled(sample: TokenSample) -> TokenSample:
    """The steps that are annealed on."""
    return replace(sample, tokens=sample.tokens[sampled_steps(sample)])


def sampled_steps(sample: TokenSample) -> NDArray[np.int64]:
    """Numbers of the steps that are annealed on, int64[step]."""
    return learned_steps(sample.n_steps, max(LEAST_STEPS, SAMPLED_DEVICES // sample.n_devices))


def cooling_of(problem: PlacementProblem) -> Cooling:
    """More rounds for more slots, up to a limit."""
    return Cooling(n_rounds=min(ROUNDS_PER_SLOT * problem.n_slots, MOST_ROUNDS), n_candidates=4, hot=3e-3, cold=3e-5)
