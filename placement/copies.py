"""Copies of weights that a change of placement needs: which rank sends which expert to which other one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from scenarios.errors import PlacementError

Index = NDArray[np.int64]
NOBODY = -1
"""The source of an expert that no rank holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Experts on their way between ranks, int64[copy] each."""

    layer: Index
    expert: Index
    source: Index
    target: Index

    def __len__(self) -> int:
        return len(self.layer)


def copies_between(before: Placement, after: Placement, ranks_per_node: int) -> Copies:
    """What ranks must get that held no copy of an expert before: from a rank of their own node where one holds it.

    Among those that hold it the one that sends least so far. Raises PlacementError where the ranks are not the same.
    """
    if (before.n_ranks, before.n_experts, before.n_layers) != (after.n_ranks, after.n_experts, after.n_layers):
        raise PlacementError(f"{before.name} and {after.name} are plans of different ranks, experts or layers")
    node = np.arange(before.n_ranks) // ranks_per_node
    held, wanted = (held_by(plan).swapaxes(1, 2) for plan in (before, after))
    return copies_of(held, wanted, node)


def copies_of(held: NDArray[np.bool_], wanted: NDArray[np.bool_], node: Index) -> Copies:
    """What ranks lack, each from the nearest rank that holds it, of these from the one that sends least so far.

    held, wanted  bool[layer, rank, expert]; node: of every rank. Where no rank holds an expert its source is NOBODY.
    """
    sent = np.zeros(len(node), np.int64)
    rows = []
    for layer in range(len(held)):
        for target, expert in np.argwhere(wanted[layer] & ~held[layer]).tolist():
            holders = np.flatnonzero(held[layer][:, expert])
            near = holders[node[holders] == node[target]]
            among = near if len(near) else holders
            source = int(among[np.argmin(sent[among])]) if len(among) else NOBODY
            if source != NOBODY:
                sent[source] += 1
            rows.append((layer, expert, source, target))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return Copies(layer=columns[0], expert=columns[1], source=columns[2], target=columns[3])


def held_by(placement: Placement) -> NDArray[np.bool_]:
    """What each rank holds, bool[layer, expert, rank]."""
    return np.stack([held_by_rank(placement, layer).T for layer in range(placement.n_layers)])


def held_by_rank(placement: Placement, layer: int) -> NDArray[np.bool_]:
    """Whether a rank holds an expert of a layer, bool[rank, expert]."""
    held = np.zeros((placement.n_ranks, placement.n_experts), np.bool_)
    filled = placement.expert_of_slot[layer] >= 0
    held[placement.rank_of_slot[layer][filled], placement.expert_of_slot[layer][filled]] = True
    return held
