"""Load balance beyond swaps: the busiest rank and a light one divide all their slots anew, until none helps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from placement.plan import FloatArray

IntArray = NDArray[np.intp]

MOST_DIVISIONS = 7_000  # of two ranks' slots: all 6,435 with 8 slots a rank; with more a random part of them is tried
STARTS = 16  # gpt-oss-20b on 8 ranks: 0.71 % over the counting bound with one, 0.31 with 16, 0.26 with 64
PARTNERS = 8  # the lightest ranks; heavier ones have little room for what the busiest gives up
TINY = 1e-300
GAIN = 1e-12  # relative; a smaller gain is rounding
ENOUGH = 1e-3  # relative; a layer this close to its bound is left alone
PAIR_CELLS = 6_000  # what trying two ranks costs beside its cells (slots x divisions), in time of so many cells
MOST_CELLS = 24_000_000  # 0.05 CPU s; a count, so that a plan is the same on every machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Redivided:
    """A layer's plan intp[slot], the load of its busiest rank [tokens], and the work in cells."""

    slots: IntArray
    peak: float
    cells: int


def evened(expert_of_slot: IntArray, loads: FloatArray, n_ranks: int, least: FloatArray) -> IntArray:
    """The plan int[layer, slot] with layers re-divided, first the one that is furthest above `least` float64[layer].

    A layer is re-divided from its plan, then from random orders of its slots, until it is within ENOUGH of its bound;
    all have a turn before one has its next. Ends after MOST_CELLS of work, whatever the machine's speed.
    """
    slots = expert_of_slot.copy()
    peaks = np.array([_busiest(*layer, n_ranks) for layer in zip(loads, slots, strict=True)])
    starts, cells = np.zeros(len(slots), np.intp), 0
    while cells < MOST_CELLS:
        above = np.where((peaks > least * (1 + ENOUGH)) & (starts < STARTS), peaks / np.maximum(least, TINY), 0.0)
        if not above.any():
            break
        layer = int(np.where(starts == starts[above > 0].min(), above, 0.0).argmax())
        rng = np.random.default_rng(int(starts[layer]))
        order = slots[layer] if starts[layer] == 0 else rng.permutation(slots[layer])
        found = redivided(loads[layer], order, n_ranks, most_cells=MOST_CELLS - cells)
        starts[layer], cells = starts[layer] + 1, cells + found.cells
        if found.peak < peaks[layer]:
            slots[layer], peaks[layer] = found.slots, found.peak
    return slots


def best_redivided(loads: FloatArray, expert_of_slot: IntArray, n_ranks: int) -> IntArray:
    """The best of re-divisions from the plan and from STARTS - 1 random orders of its slots, the same in every call."""
    rng = np.random.default_rng(0)
    orders = [expert_of_slot, *(rng.permutation(expert_of_slot) for _ in range(STARTS - 1))]
    return min((redivided(loads, order, n_ranks) for order in orders), key=lambda found: found.peak).slots


def redivided(loads: FloatArray, expert_of_slot: IntArray, n_ranks: int, *, most_cells: float = np.inf) -> Redivided:
    """The plan of one layer after re-divisions; its busiest rank is never above that of `expert_of_slot`.

    loads  float64[expert]  tokens; copies of an expert share them evenly.

    The busiest rank is lowered with the partner that brings the higher of the two lowest; where none of the lightest
    PARTNERS does, or `most_cells` are spent, the plan stays.
    """
    slots = expert_of_slot.copy().reshape(n_ranks, -1)
    share = loads / np.maximum(np.bincount(expert_of_slot, minlength=len(loads)), 1)
    divisions, cells = _divisions(slots.shape[1]), 0
    while True:
        rank_load = share[slots].sum(axis=1)
        hot = int(rank_load.argmax())
        best_peak, best_rank, best_row = rank_load[hot] * (1 - GAIN), -1, -1
        partners = np.argsort(rank_load, kind="stable")[: min(PARTNERS, n_ranks - 1)]
        cells += len(partners) * (divisions.size + PAIR_CELLS)
        for other in partners if cells <= most_cells else ():
            experts = np.concatenate([slots[hot], slots[other]])
            first = share[experts][divisions].sum(axis=1)
            peak = np.maximum(first, rank_load[hot] + rank_load[other] - first)
            peak = np.where(_without_twins(experts, divisions), peak, np.inf)
            row = int(peak.argmin())
            if peak[row] < best_peak:
                best_peak, best_rank, best_row = peak[row], int(other), row
        if best_rank < 0:
            return Redivided(slots=slots.ravel(), peak=float(rank_load[hot]), cells=cells)
        experts = np.concatenate([slots[hot], slots[best_rank]])
        mine = np.zeros(len(experts), bool)
        mine[divisions[best_row]] = True
        slots[hot], slots[best_rank] = np.sort(experts[mine]), np.sort(experts[~mine])


@lru_cache
def _divisions(room: int) -> IntArray:
    """Places of the first rank in each division of 2 `room` slots, intp[division, room]."""
    if comb(2 * room, room) <= 2 * MOST_DIVISIONS:
        return np.array([(0, *rest) for rest in combinations(range(1, 2 * room), room - 1)], dtype=np.intp)
    rng = np.random.default_rng(0)  # the same divisions in every call: a plan is a function of its problem
    own = rng.random((MOST_DIVISIONS, 2 * room)).argsort(axis=1)[:, :room]
    swaps = [[*(p for p in range(room) if p != out), room + into] for out in range(room) for into in range(room)]
    return np.concatenate([np.array(swaps, dtype=np.intp), own])


def _without_twins(experts: IntArray, divisions: IntArray) -> NDArray[np.bool_]:
    """Whether neither side holds more copies of an expert than it must: two ranks with a copy each keep one each."""
    allowed = np.ones(len(divisions), bool)
    values, counts = np.unique(experts, return_counts=True)
    for expert in values[counts == 2]:
        allowed &= (experts[divisions] == expert).sum(axis=1) == 1
    return allowed


def _busiest(loads: FloatArray, expert_of_slot: IntArray, n_ranks: int) -> float:
    share = loads / np.maximum(np.bincount(expert_of_slot, minlength=len(loads)), 1)
    return float(share[expert_of_slot].reshape(n_ranks, -1).sum(axis=1).max())
