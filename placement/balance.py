"""`balance`: swaps of the busiest rank's slots, all layers at once; then the worst layers re-divided."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.baselines import greedy
from placement.bounds import busiest_rank_bound
from placement.plan import FloatArray, Placement
from placement.problem import PlacementProblem, placement_from
from placement.redivision import evened
from scenarios.placement_specs import PlacementSpec

Slots = NDArray[np.intp]
MOST_SWAPS = 1000  # a guard: each swap lowers the busiest rank, and a layer of 512 slots needs some dozens


def balance(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """The plan of `swapped`, then two ranks at a time re-divided in layers far from their bound, within fixed work.

    Ranks of unlike speed are not re-divided.
    """
    plan = swapped(problem, spec)
    if problem.speeds is not None and np.ptp(problem.speeds) > 0:
        return plan
    loads, n_ranks = problem.loads_or_uniform(), problem.n_ranks
    least = busiest_rank_bound(loads, n_slots=problem.n_slots, n_ranks=n_ranks)
    return placement_from(evened(plan.expert_of_slot.astype(np.intp), loads, n_ranks, least), problem, spec)


def swapped(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """Longest first, then the best swap of a slot of the busiest rank with any other, until none lowers that rank.

    Loads count over the rank's speed. About 1 % above the counting bound on measured routing without replicas.
    """
    start = greedy(problem, spec).expert_of_slot.astype(np.intp)
    speeds = np.ones(problem.n_ranks) if problem.speeds is None else problem.speeds
    return placement_from(swapped_until_even(start, problem.loads_or_uniform(), speeds), problem, spec)


def swapped_until_even(expert_of_slot: Slots, loads: FloatArray, speeds: FloatArray) -> Slots:
    """The slots int[layer, slot] after the swaps; `loads` float64[layer, expert], `speeds` float64[rank]."""
    slots = expert_of_slot.copy()
    shares = np.take_along_axis(loads, slots, axis=1) / _copies(slots, loads.shape[1])
    active = np.arange(len(slots))
    for _ in range(MOST_SWAPS):
        first, second = _best_swaps(shares[active], speeds)
        improving = first >= 0
        active, first, second = active[improving], first[improving], second[improving]
        if len(active) == 0:
            break
        for table in (slots, shares):
            table[active, first], table[active, second] = table[active, second], table[active, first]
    return slots


def _best_swaps(shares: FloatArray, speeds: FloatArray) -> tuple[Slots, Slots]:
    """The two slots of each layer whose exchange lowers its busiest rank most, -1 where none does.

    shares  float64[layer, slot]: tokens of every copy. A copy given away lowers the rank by what it is above the other,
    so with equal speeds a swap helps only where 0 < given < peak - the other rank's load.
    """
    (n_layers, n_slots), n_ranks = shares.shape, len(speeds)
    layers, room = np.arange(n_layers), n_slots // n_ranks
    tokens = shares.reshape(n_layers, n_ranks, room).sum(axis=2)
    busy = (tokens / speeds).argmax(axis=1)
    peak = tokens[layers, busy] / speeds[busy]
    own = busy[:, None] * room + np.arange(room)
    worst = np.take_along_axis(shares, own, axis=1)[:, :, None] - shares[:, None, :]  # given away by the busiest rank
    taken = worst + np.repeat(tokens, room, axis=1)[:, None, :]
    np.subtract(tokens[layers, busy][:, None, None], worst, out=worst)
    if np.ptp(speeds) > 0 or speeds[0] != 1:
        worst /= speeds[busy][:, None, None]
        taken /= np.repeat(speeds, room)
    np.maximum(worst, taken, out=worst)
    flat = worst.reshape(n_layers, -1)  # a swap inside the rank leaves at least its load, and is never chosen
    best = flat.argmin(axis=1)
    # Smaller gains than rounding would swap back and forth.
    improves = flat[layers, best] < peak * (1 - 1e-12)
    first = own[layers, best // n_slots]
    return np.where(improves, first, -1), np.where(improves, best % n_slots, -1)


def _copies(slots: Slots, n_experts: int) -> Slots:
    """Copies of the expert of each slot, int[layer, slot]."""
    cells = slots + n_experts * np.arange(len(slots))[:, None]
    counts = np.bincount(cells.ravel(), minlength=len(slots) * n_experts)
    copies: Slots = counts[cells]
    return copies
