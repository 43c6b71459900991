"""Re-planning near the plan in force: a new plan within a budget of moved copies, and labels that keep most in place.

A copy moves where a rank holds an expert of which it had none before: its weights must be copied there. Moves are
counted per layer and summed. Copies of an expert share its tokens evenly.

batch_loads     float64[batch, layer, expert]  tokens.
expert_of_slot  intp[layer, slot]              slot p lies on rank p // (slots / ranks).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from placement.improvements import copies_held, improvements
from placement.knapsack import choose
from placement.plan import FloatArray
from scenarios.errors import PlacementError

IntArray = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """A plan near another one.

    busiest  sum over layers of the mean busiest rank's load [tokens].
    moves    copies that moved, intp[layer].
    """

    expert_of_slot: IntArray
    busiest: float
    moves: IntArray


def moved_copies(current: IntArray, plan: IntArray, n_ranks: int, n_experts: int) -> IntArray:
    """Copies of `plan` on ranks that hold no copy of their expert in `current`, intp[layer]."""
    counts = [
        int(((copies_held(after, n_ranks, n_experts) > 0) & (copies_held(before, n_ranks, n_experts) == 0)).sum())
        for before, after in _layers(current, plan)
    ]
    return np.array(counts, dtype=np.intp)


def relabelled(current: IntArray, plan: IntArray, n_ranks: int, n_experts: int) -> IntArray:
    """The same groups of experts on the ranks where most of each are already, intp[layer, slot].

    Ranks are alike, so that each layer's naming is a ranks x ranks assignment of the largest overlap, exact. Kept
    copies stay in their slot, so that an engine need not shuffle weights inside a rank either.
    """
    result = plan.copy()
    for layer, (before, after) in enumerate(_layers(current, plan)):
        held, wanted = copies_held(before, n_ranks, n_experts) > 0, copies_held(after, n_ranks, n_experts) > 0
        overlap = held.T.astype(float) @ wanted
        rank, group = scipy.optimize.linear_sum_assignment(overlap, maximize=True)
        groups = after.reshape(n_ranks, -1)
        placed = [_in_place(old, groups[g]) for old, g in zip(before.reshape(n_ranks, -1)[rank], group, strict=True)]
        result[layer] = np.concatenate(placed)
    return result


def replan(
    batch_loads: FloatArray, current: IntArray, n_ranks: int, *, most_moves: int, tokens_per_move: float = 0.0
) -> Replan:
    """The best plan found within `most_moves` moved copies over all layers.

    Every layer is improved move by move from the plan in force (`improvements`); how many moves each layer gets is one
    multiple-choice knapsack over these curves. A move must save at least `tokens_per_move` tokens of the busiest rank:
    the time of copying an expert, spread over the period until the next plan, in tokens of that time.
    """
    if most_moves < 0:
        raise PlacementError(f"the budget is {most_moves} moves; give 0 or more")
    curves = [improvements(batch_loads[:, n], slots, n_ranks, most_moves=most_moves) for n, slots in enumerate(current)]
    n_options = max(len(curve) for curve in curves)
    costs = np.full((len(curves), n_options), np.inf)
    moves = np.zeros((len(curves), n_options))
    for layer, curve in enumerate(curves):
        moves[layer, : len(curve)] = [step.moves for step in curve]
        costs[layer, : len(curve)] = [step.busiest for step in curve] + tokens_per_move * moves[layer, : len(curve)]
    chosen = choose(costs, moves[None], np.array([float(most_moves)])).option
    picked = [curve[option] for curve, option in zip(curves, chosen.tolist(), strict=True)]
    return Replan(
        expert_of_slot=np.stack([step.expert_of_slot for step in picked]),
        busiest=float(sum(step.busiest for step in picked)),
        moves=np.array([step.moves for step in picked], dtype=np.intp),
    )


def _layers(current: IntArray, plan: IntArray) -> list[tuple[IntArray, IntArray]]:
    if current.shape[0] != plan.shape[0]:
        raise PlacementError(f"the plan in force has {current.shape[0]} layers, the new one {plan.shape[0]}")
    return list(zip(current, plan, strict=True))


def _in_place(old: IntArray, new: IntArray) -> IntArray:
    """The experts `new` of a rank in slots: those of `old` where they are, the others in the slots that are left."""
    if len(old) != len(new):
        return np.sort(new)
    rest = list(new)
    slots: list[int] = []
    for expert in old.tolist():
        kept = expert in rest
        slots.append(expert if kept else -1)
        if kept:
            rest.remove(expert)
    return np.array([expert if expert >= 0 else rest.pop(0) for expert in slots], dtype=np.intp)
