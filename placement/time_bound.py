"""A lower bound on the time of MoE layers under any plan."""

from __future__ import annotations

import numpy as np

from hwmodels.fluid import fluid_moe_s
from hwmodels.moe import expert_shape
from placement.exchange_time import Machine, port_times_s
from placement.plan import FloatArray
from placement.problem import PlacementProblem
from scenarios.errors import PlacementError


def moe_time_bound_s(problem: PlacementProblem) -> FloatArray:
    """No plan of the problem takes less in a layer, mean over the fitted steps: float64[layer] [s].

    A layer takes at least an exchange without any copy, the experts of the slowest rank, and another such exchange.
    That rank takes at least the time of a rank with the mean tokens and the mean number of experts that have any
    (Jensen), and of one with so many experts that all find a rank. Copies between devices are not bounded here.
    Raises PlacementError where the problem has no machine or no steps.
    """
    machine, loads = problem.machine, problem.batch_loads
    if machine is None or problem.sample is None or loads is None:
        raise PlacementError("the time of a plan needs problem.machine, problem.sample and problem.batch_loads")
    fixed_s = _empty_exchange_s(machine, problem.sample.tokens.shape[2])
    if machine.cluster.device.measured.blocks:
        return np.full(problem.n_layers, fixed_s)  # tables correct the law by factors that have no bound
    least: FloatArray = fixed_s + _experts_s(problem, machine, loads).mean(axis=0)
    return least


def _empty_exchange_s(machine: Machine, n_tokens: int) -> float:
    """Dispatch and combine of `n_tokens` a device without any copy [s]."""
    held, none = np.full((1, 1), n_tokens), np.zeros((1, 1))
    return float(sum(port_times_s(machine, side, held, (none, none)).max() for side in ("dispatch", "combine")))


def _experts_s(problem: PlacementProblem, machine: Machine, loads: FloatArray) -> FloatArray:
    """The least time of the slowest rank's experts, float64[step, layer]."""
    device, shape = machine.cluster.device, expert_shape(machine.model, machine.layout.tp)
    speeds = np.ones(problem.n_ranks) if problem.speeds is None else problem.speeds
    routed, active = loads.sum(axis=2), np.count_nonzero(loads, axis=2)
    room, n_ranks = problem.slots_per_rank, problem.n_ranks
    mean_s = fluid_moe_s(routed / n_ranks, active / n_ranks, room, shape, device) / speeds.mean()
    fullest = -(-active // n_ranks)
    most_s = fluid_moe_s(fullest, fullest, room, shape, device) / speeds.max()
    least: FloatArray = np.maximum(mean_s, most_s)
    return least
