"""Copies of weights that a change of placement needs: which rank sends which expert to which other one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from scenarios.errors import PlacementError

Index = NDArray[np.int64]


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
    sent = np.zeros(before.n_ranks, np.int64)
    node = np.arange(before.n_ranks) // ranks_per_node
    rows = []
    for layer in range(before.n_layers):
        held, wanted = held_by_rank(before, layer), held_by_rank(after, layer)
        for target, expert in np.argwhere(wanted & ~held).tolist():
            holders = np.flatnonzero(held[:, expert])
            near = holders[node[holders] == node[target]]
            among = near if len(near) else holders
            source = int(among[np.argmin(sent[among])])
            sent[source] += 1
            rows.append((layer, expert, source, target))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return Copies(layer=columns[0], expert=columns[1], source=columns[2], target=columns[3])


def held_by_rank(placement: Placement, layer: int) -> NDArray[np.bool_]:
    """Whether a rank holds an expert of a layer, bool[rank, expert]."""
    held = np.zeros((placement.n_ranks, placement.n_experts), np.bool_)
    filled = placement.expert_of_slot[layer] >= 0
    held[placement.rank_of_slot[layer][filled], placement.expert_of_slot[layer][filled]] = True
    return held
