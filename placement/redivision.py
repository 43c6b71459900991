"""Load balance beyond swaps: the busiest rank and a light one divide all their slots anew, until none helps."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from placement.plan import FloatArray

IntArray = NDArray[np.intp]

MOST_DIVISIONS = 7_000  # of two ranks' slots: all 6,435 with 8 slots a rank; with more a random part of them is tried
STARTS = 16  # gpt-oss-20b on 8 ranks: 0.71 % over the counting bound with one, 0.31 with 16, 0.26 with 64
PARTNERS = 8  # the lightest ranks; heavier ones have little room for what the busiest gives up
GAIN = 1e-12  # relative; a smaller gain is rounding


def best_redivided(loads: FloatArray, expert_of_slot: IntArray, n_ranks: int) -> IntArray:
    """The best of re-divisions from the plan and from STARTS - 1 random orders of its slots, the same in every call."""
    rng = np.random.default_rng(0)
    orders = [expert_of_slot, *(rng.permutation(expert_of_slot) for _ in range(STARTS - 1))]
    plans = [redivided(loads, order, n_ranks) for order in orders]
    return min(plans, key=lambda plan: _busiest(loads, plan, n_ranks))


def redivided(loads: FloatArray, expert_of_slot: IntArray, n_ranks: int) -> IntArray:
    """The plan intp[slot] of one layer after re-divisions; its busiest rank is never above that of `expert_of_slot`.

    loads  float64[expert]  tokens; copies of an expert share them evenly. The busiest rank is lowered with the partner
    that brings the higher of the two lowest; where none of the lightest PARTNERS does, the plan stays.
    """
    slots = expert_of_slot.copy().reshape(n_ranks, -1)
    share = loads / np.maximum(np.bincount(expert_of_slot, minlength=len(loads)), 1)
    divisions = _divisions(slots.shape[1])
    while True:
        rank_load = share[slots].sum(axis=1)
        hot = int(rank_load.argmax())
        best_peak, best_rank, best_row = rank_load[hot] * (1 - GAIN), -1, -1
        for other in np.argsort(rank_load, kind="stable")[: min(PARTNERS, n_ranks - 1)]:
            experts = np.concatenate([slots[hot], slots[other]])
            first = share[experts][divisions].sum(axis=1)
            peak = np.maximum(first, rank_load[hot] + rank_load[other] - first)
            peak = np.where(_without_twins(experts, divisions), peak, np.inf)
            row = int(peak.argmin())
            if peak[row] < best_peak:
                best_peak, best_rank, best_row = peak[row], int(other), row
        if best_rank < 0:
            return slots.ravel()
        experts = np.concatenate([slots[hot], slots[best_rank]])
        mine = np.zeros(len(experts), bool)
        mine[divisions[best_row]] = True
        slots[hot], slots[best_rank] = np.sort(experts[mine]), np.sort(experts[~mine])


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
