"""Placements on more or fewer ranks than the one in force, that change it least.

held  bool[layer, expert, rank]  what the new ranks hold already: nothing where a rank is new.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from placement.copies import held_by
from placement.plan import EMPTY, Placement

Held = NDArray[np.bool_]


def held_after(placement: Placement, origins: Sequence[int | None]) -> Held:
    """What new ranks hold already, each of them the old rank that is named, or new: None."""
    before = held_by(placement)
    nothing = np.zeros(before.shape[:2], bool)
    return np.stack([nothing if rank is None else before[:, :, rank] for rank in origins], axis=-1)


def relabelled_onto(held: Held, plan: Placement) -> Placement:
    """The groups of `plan` on the ranks that hold most of each already: an exact assignment, layer by layer."""
    wanted = held_by(plan)
    for layer in range(plan.n_layers):
        overlap = held[layer].T.astype(float) @ wanted[layer]
        rank, group = scipy.optimize.linear_sum_assignment(overlap, maximize=True)
        wanted[layer][:, rank] = wanted[layer][:, group]
    return placed(wanted, plan)


def least_changed(held: Held, like: Placement, *, level: bool = True) -> Placement:
    """Every expert somewhere, by fewest copies: lost ones go to the ranks with the fewest experts of their layer.

    level  ranks end up with equal numbers of experts, or one apart: the fullest give to the emptiest.
    """
    after = held.copy()
    for layer in after:
        for expert in np.flatnonzero(~layer.any(axis=1)):
            layer[expert, np.argmin(layer.sum(axis=0))] = True
        while level and _moved(layer):
            pass
    return placed(after, like)


def _moved(layer: Held) -> bool:
    """Whether an expert of the fullest rank could move to the emptiest one; bool[expert, rank] is changed."""
    counts = layer.sum(axis=0)
    full, empty = int(np.argmax(counts)), int(np.argmin(counts))
    movable = np.flatnonzero(layer[:, full] & ~layer[:, empty])
    if counts[full] - counts[empty] < 2 or not len(movable):
        return False
    layer[movable[-1], full], layer[movable[-1], empty] = False, True
    return True


def placed(held: Held, like: Placement) -> Placement:
    """The placement in which ranks hold this, with the split and name of another; short layers have empty slots."""
    n_layers, n_experts, n_ranks = held.shape
    room = held.sum(axis=1).max(axis=0)
    slots = np.full((n_layers, int(room.sum())), EMPTY, np.int32)
    begins = np.cumsum(room) - room
    for layer in range(n_layers):
        for rank, begin in enumerate(begins):
            experts = np.flatnonzero(held[layer, :, rank])
            slots[layer, begin : begin + len(experts)] = experts
    return Placement(
        expert_of_slot=slots,
        rank_of_slot=np.broadcast_to(np.repeat(np.arange(n_ranks, dtype=np.int32), room), slots.shape),
        n_experts=n_experts,
        n_ranks=n_ranks,
        split=like.split,
        name=like.name,
    )
