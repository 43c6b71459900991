"""A lower bound on the time of MoE layers under any plan."""

from __future__ import annotations

import numpy as np

from hwmodels.fluid import fluid_moe_s
from hwmodels.links import port_s
from hwmodels.moe import expert_shape
from placement.destination_bounds import least_visits, quick_bound
from placement.exchange_time import SIDES, Machine, Side, port_times_s
from placement.plan import FloatArray
from placement.problem import PlacementProblem
from placement.sample import TokenSample
from scenarios.errors import PlacementError


def moe_time_bound_s(problem: PlacementProblem) -> FloatArray:
    """No plan of the problem takes less in a layer, mean over the fitted steps: float64[layer] [s].

    All devices wait for the last to have sent, which takes at least the mean device's copies (Jensen). From there on
    the mean device works and sends back, with the mean tokens, experts and copies; the slowest rank works at least as
    long as one with so many experts that all find a rank, and sends back at least nothing. Raises PlacementError where
    the problem has no machine or no steps.
    """
    machine, loads, sample = problem.machine, problem.batch_loads, problem.sample
    if machine is None or sample is None or loads is None:
        raise PlacementError("the time of a plan needs problem.machine, problem.sample and problem.batch_loads")
    none = np.zeros(problem.n_layers)
    # Only the law alpha-beta is convex in the copies of a device; of fitted kernels the time without any counts.
    convex = machine.exchange.kernel == "alpha-beta"
    least = _least_copies(problem, machine, sample) if convex else (none, none)
    dispatch_s, combine_s = (_exchange_s(machine, sample, side, *least) for side in SIDES)
    slowest_s = empty_s = _port_s(machine, "combine", sample, none, none)
    if not machine.cluster.device.measured.blocks:  # tables correct the law by factors that have no bound
        mean_s, most_s = _experts_s(problem, machine, loads)
        slowest_s = np.maximum(mean_s, most_s).mean(axis=0) + empty_s
        if problem.speeds is None or np.ptp(problem.speeds) == 0:  # else a fast rank may take all
            slowest_s = np.maximum(mean_s.mean(axis=0) + combine_s, slowest_s)
    bound_s: FloatArray = dispatch_s + slowest_s
    return bound_s


def _exchange_s(
    machine: Machine, sample: TokenSample, side: Side, copies: FloatArray, crossings: FloatArray
) -> FloatArray:
    """The least time of the ports of a device with so many copies, of which so many cross to another node."""
    if machine.forwards:
        return _port_s(machine, side, sample, np.zeros_like(crossings), crossings)
    return _port_s(machine, side, sample, *_evenly(machine, side, copies, crossings))


def _evenly(machine: Machine, side: Side, copies: FloatArray, crossings: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Copies inside nodes and between them such that the later of the two ports is as early as any split makes it.

    The port inside takes near messages m + copies c, that between far messages + crossings x of them, which grow: they
    are equal at x = (near + c inside - far) / (inside + between), times of one copy; at least `crossings` travel.
    """
    cluster = machine.cluster
    if cluster.n_nodes == 1 or cluster.inter is None:
        return copies, np.zeros_like(copies)
    (near, far), size = machine.messages, machine.copy_bytes(side)
    inside_s, between_s = float(port_s(size, cluster.intra)), float(port_s(size, cluster.inter))
    fixed_s = near * cluster.intra.message_overhead_s - far * cluster.inter.message_overhead_s
    equal = (fixed_s + copies * inside_s) / (inside_s + between_s)
    crossing = np.clip(equal, crossings, np.maximum(copies, crossings))
    return np.maximum(copies - crossing, 0.0), crossing


def _least_copies(problem: PlacementProblem, machine: Machine, sample: TokenSample) -> tuple[FloatArray, FloatArray]:
    """Copies of a mean device and step at least, float64[layer]: all, and those that cross to another node.

    A token sends a copy to every device of each rank that it visits, not its own; docs/background/placement-bounds.md.
    """
    layout, n_experts = machine.layout, problem.n_experts
    size = {"n_experts": n_experts, "n_slots": problem.n_slots}
    copies, crossings = np.zeros(problem.n_layers), np.zeros(problem.n_layers)
    for layer in range(problem.n_layers):
        rows = sample.rows(layer)
        if machine.exchange.dedup == "none":
            visits = float((rows < n_experts).sum())
        else:
            visits = least_visits(rows, quick_bound, n_parts=layout.n_ranks, **size)
        copies[layer] = layout.tp * visits - _at_home(problem, machine, sample, layer)
        if layout.n_nodes > 1:
            own = (rows < n_experts).any(axis=1).sum()
            crossings[layer] = least_visits(rows, quick_bound, n_parts=layout.n_nodes, **size) - own
    cells = sample.n_steps * sample.n_devices
    return np.maximum(copies, 0.0) / cells, np.maximum(crossings, 0.0) / cells


def _at_home(problem: PlacementProblem, machine: Machine, sample: TokenSample, layer: int) -> float:
    """Choices of experts on the token's own device at most: experts where most choose them, and so their replicas."""
    n_experts, tp = problem.n_experts, machine.layout.tp
    ids = sample.ids(layer)
    rank = np.arange(sample.n_devices)[:, None, None] // tp
    cells = np.broadcast_to(rank, ids.shape[1:]) * (n_experts + 1) + ids
    counts = np.bincount(cells.ravel(), minlength=problem.n_ranks * (n_experts + 1)).reshape(-1, n_experts + 1)
    descending = -np.sort(-counts[:, :n_experts], axis=0)
    spare = np.sort(descending[1:].ravel())[::-1]
    return float(descending[0].sum() + spare[: problem.redundant].sum())


def _port_s(machine: Machine, side: Side, sample: TokenSample, inside: FloatArray, between: FloatArray) -> FloatArray:
    """Time of a port with so many copies, float64[...] [s]."""
    held = np.full(1, sample.tokens.shape[2])
    return port_times_s(machine, side, held, (inside, between))


def _experts_s(problem: PlacementProblem, machine: Machine, loads: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Time of experts, float64[step, layer]: of a rank with mean tokens and experts, and of one with the most experts.

    The second has as many experts as some rank must, each with a token. Over the mean speed of ranks, and the highest.
    """
    device, shape = machine.cluster.device, expert_shape(machine.model, machine.layout.tp)
    speeds = np.ones(problem.n_ranks) if problem.speeds is None else problem.speeds
    routed, active = loads.sum(axis=2), np.count_nonzero(loads, axis=2)
    room, n_ranks = problem.slots_per_rank, problem.n_ranks
    mean_s = fluid_moe_s(routed / n_ranks, active / n_ranks, room, shape, device) / speeds.mean()
    fullest = -(-active // n_ranks)
    return mean_s, fluid_moe_s(fullest, fullest, room, shape, device) / speeds.max()
