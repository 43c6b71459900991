"""`saa`: the mean over fitted steps of the busiest rank's load, by annealing swaps and re-pointing spare slots.

Sample average approximation: a mean of maxima, where EPLB and `balance` minimise the maximum of the mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.annealing import Cooling, Index, anneal
from placement.balance import swapped
from placement.plan import FloatArray, Placement
from placement.problem import PlacementProblem, placement_from
from placement.sample import learned_steps
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec

ROUNDS_PER_SLOT = 15
SAMPLED_STEPS = 32  # those that `joint` prices on eight devices, so that `auto` has others to compare plans on
HOTTEST = 16  # experts that a spare slot may be given to


def saa(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """From the balanced plan: spare slots to where they lower the mean peak most, annealed swaps, spare slots again."""
    if problem.batch_loads is None:
        raise PlacementError("saa needs problem.batch_loads")
    slots = swapped(problem, spec.model_copy(update={"split": "even"})).expert_of_slot.astype(np.int64)
    speeds = np.ones(problem.n_ranks) if problem.speeds is None else problem.speeds
    loads = np.moveaxis(problem.batch_loads[learned_steps(len(problem.batch_loads), SAMPLED_STEPS)], 0, 1)
    cooling = Cooling(n_rounds=ROUNDS_PER_SLOT * problem.n_slots, n_candidates=4, hot=1e-2, cold=1e-4)
    seeds = [[problem.seed, spec.seed, layer] for layer in range(problem.n_layers)]
    slots = repointed(slots, loads, speeds)
    slots = anneal(BatchLoadState(slots, loads, speeds), problem.n_ranks, cooling, seeds)
    return placement_from(repointed(slots, loads, speeds), problem, spec)


class BatchLoadState:
    """Slots of all layers with their load in every step, over the speed of the rank."""

    def __init__(self, slots: Index, loads: FloatArray, speeds: FloatArray) -> None:
        self.slots, self.speeds = slots.copy(), speeds
        self.layers = np.arange(len(slots))
        self.room = slots.shape[1] // len(speeds)
        counts = _counts(slots, loads.shape[2])
        self.shares = np.take_along_axis(loads / counts[:, None], slots[:, None, :], axis=2)
        by_rank = self.shares.reshape(*self.shares.shape[:2], len(speeds), self.room)
        self.peaks = by_rank.sum(axis=3) / speeds

    def cost(self) -> FloatArray:
        """Mean over steps of the busiest rank, float64[layer]."""
        costs: FloatArray = self.peaks.max(axis=2).mean(axis=1)
        return costs

    def busiest(self) -> Index:
        """The rank of the highest mean load, int64[layer]."""
        busy: Index = self.peaks.mean(axis=1).argmax(axis=1)
        return busy

    def allowed(self, first: Index, second: Index) -> NDArray[np.bool_]:
        """No second copy of an expert on a rank."""
        return lone_copies(self.slots, self.room, first, second)

    def swapped(self, first: Index, second: Index) -> tuple[FloatArray, FloatArray]:
        """Costs float64[layer, candidate] and loads float64[layer, candidate, step, rank]."""
        layer, candidate = self.layers[:, None], np.arange(first.shape[1])
        p, q = first // self.room, second // self.room
        moved = self.shares[layer, :, second] - self.shares[layer, :, first]
        peaks = np.repeat(self.peaks[:, None], first.shape[1], axis=1)
        peaks[layer, candidate, :, p] += moved / self.speeds[p][..., None]
        peaks[layer, candidate, :, q] -= moved / self.speeds[q][..., None]
        return peaks.max(axis=3).mean(axis=2), peaks

    def take(self, layers: Index, candidate: Index, first: Index, second: Index, made: FloatArray) -> None:
        """Exchange the slots."""
        self.peaks[layers] = made[layers, candidate]
        for table in (self.slots, np.moveaxis(self.shares, 1, 2)):
            table[layers, first], table[layers, second] = table[layers, second], table[layers, first]


def lone_copies(slots: Index, room: int, first: Index, second: Index) -> NDArray[np.bool_]:
    """Whether swapping slots int[layer, candidate] puts no second copy of an expert on a rank."""
    layer = np.arange(len(slots))[:, None]
    by_rank = slots.reshape(len(slots), -1, room)
    a, b = slots[layer, first], slots[layer, second]
    twice = (by_rank[layer, second // room] == a[..., None]) | (by_rank[layer, first // room] == b[..., None])
    lone: NDArray[np.bool_] = ~twice.any(axis=-1)
    return lone


def repointed(slots: Index, loads: FloatArray, speeds: FloatArray) -> Index:
    """The slots after giving spare copies to other experts, one at a time, while the mean peak falls.

    slots int[layer, slot], loads float64[layer, step, expert].
    """
    return np.stack([_repointed(row, steps, speeds) for row, steps in zip(slots, loads, strict=True)])


def _repointed(slots: Index, loads: FloatArray, speeds: FloatArray) -> Index:
    slots, room = slots.copy(), len(slots) // len(speeds)
    for _ in range(len(slots) - loads.shape[1]):
        best = None
        state = _mean_peak(slots, loads, speeds)
        for slot in np.flatnonzero(_counts(slots[None], loads.shape[1])[0, slots] > 1):
            expert, peak = _best_expert(slots, int(slot), loads, speeds, room)
            if peak < state * (1 - 1e-9) and (best is None or peak < best[0]):
                best = (peak, int(slot), expert)
        if best is None:
            break
        slots[best[1]] = best[2]
    return slots


def _best_expert(slots: Index, slot: int, loads: FloatArray, speeds: FloatArray, room: int) -> tuple[int, float]:
    """The expert to put into a spare slot, and the mean peak that it gives."""
    n_experts, rank, old = loads.shape[1], slot // room, int(slots[slot])
    copies = np.zeros((n_experts, len(speeds)))
    np.add.at(copies, (slots, np.arange(len(slots)) // room), 1.0)
    copies[old, rank] -= 1
    counts = copies.sum(axis=1)
    rest = (loads / counts) @ copies
    shares = loads.mean(axis=0) / counts
    experts = np.argsort(-shares, kind="stable")[:HOTTEST]
    experts = experts[(copies[experts, rank] == 0) | (experts == old)]
    if len(experts) == 0:
        return old, float("inf")
    now, then = loads[:, experts] / counts[experts], loads[:, experts] / (counts[experts] + 1)
    ranks = rest[:, None, :] + (then - now)[..., None] * copies[experts]
    ranks[..., rank] += then
    peaks = (ranks / speeds).max(axis=2).mean(axis=0)
    best = int(peaks.argmin())
    return int(experts[best]), float(peaks[best])


def _mean_peak(slots: Index, loads: FloatArray, speeds: FloatArray) -> float:
    return float(BatchLoadState(slots[None], loads[None], speeds).cost()[0])


def _counts(slots: Index, n_experts: int) -> Index:
    """Copies of every expert, int64[layer, expert]."""
    cells = slots + n_experts * np.arange(len(slots))[:, None]
    return np.bincount(cells.ravel(), minlength=len(slots) * n_experts).reshape(len(slots), n_experts)
