"""A lower bound on the time of MoE layers under any plan."""

from __future__ import annotations

from placement.exchange_time import exchange_latency_s
from placement.problem import PlacementProblem
from scenarios.errors import PlacementError


def moe_time_bound_s(problem: PlacementProblem) -> float:
    """No plan of the problem takes less, mean over the fitted steps [s].

    Raises PlacementError where the problem has no machine or no sample.
    """
    machine, sample = problem.machine, problem.sample
    if machine is None or sample is None:
        raise PlacementError("the time of a plan needs problem.machine and problem.sample")
    if machine.exchange.kernel != "alpha-beta":
        return 0.0
    latency_s = exchange_latency_s(machine.cluster, forwards=machine.forwards)
    return 2 * latency_s * problem.n_layers
