"""DeepSeek's expert-parallelism load balancer (EPLB), over all layers at once.

Source: github.com/deepseek-ai/EPLB, eplb.py (MIT licence), and its README's example.
Rows are layers, or (layer, node) pairs where nodes are treated one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from placement.problem import PlacementProblem, placement_from
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec

IntArray = NDArray[np.intp]
Loads = NDArray[np.floating[Any]]


def eplb(problem: PlacementProblem, spec: PlacementSpec) -> Placement:
    """EPLB's placement: hierarchical where the nodes divide the expert groups, unless `spec.hierarchical` says.

    Raises PlacementError where the hierarchical policy is asked for but the nodes do not divide the groups.
    """
    divides = problem.n_groups % problem.n_nodes == 0
    if spec.hierarchical and not divides:
        raise PlacementError(
            f"hierarchical eplb gives each node whole expert groups, but {problem.n_groups} groups do not divide over "
            f"{problem.n_nodes} nodes; set 'hierarchical: false'"
        )
    hierarchical = divides if spec.hierarchical is None else spec.hierarchical
    n_groups, n_nodes = (problem.n_groups, problem.n_nodes) if hierarchical else (1, 1)
    slots = rebalance_experts(
        problem.loads_or_uniform(),
        n_slots=problem.n_slots,
        n_groups=n_groups,
        n_nodes=n_nodes,
        n_ranks=problem.n_ranks,
    )
    return placement_from(slots, problem, spec)


def rebalance_experts(loads: Loads, *, n_slots: int, n_groups: int, n_nodes: int, n_ranks: int) -> IntArray:
    """Expert of each slot, int[layer, slot]: EPLB's `physical_to_logical_map`, hierarchical policy.

    Packs groups to nodes, replicates inside each node, packs replicas to the node's ranks. One group and one node is
    the global policy. Nodes must divide groups and ranks, and ranks the slots.
    """
    # The reference computes in float32; doing the same lets near-ties fall the same way.
    weights = loads.astype(np.float32)
    n_layers, n_experts = weights.shape
    expert_of_member = _experts_by_node(weights, n_groups, n_nodes)
    member_loads = np.take_along_axis(weights, expert_of_member, axis=1).reshape(n_layers * n_nodes, -1)
    member_of_copy, counts = replicate_experts(member_loads, n_slots // n_nodes)
    shares: Loads = np.divide(member_loads, counts, dtype=np.float32)
    copy_loads = np.take_along_axis(shares, member_of_copy, axis=1)
    copy_of_slot = balanced_packing(copy_loads, n_ranks // n_nodes)
    member_of_slot = np.take_along_axis(member_of_copy, copy_of_slot, axis=1).reshape(n_layers, n_nodes, -1)
    first_of_node = np.arange(n_nodes)[:, None] * (n_experts // n_nodes)
    return np.take_along_axis(expert_of_member, (member_of_slot + first_of_node).reshape(n_layers, -1), axis=1)


def replicate_experts(loads: Loads, n_copies: int, most: int | None = None) -> tuple[IntArray, IntArray]:
    """Expert of each copy, int[row, copy], and copies of each expert, int[row, expert], at most `most`.

    One copy each, then one more for argmax(load / copies), lowest index on ties. Without `most` no other choice of
    copies has a smaller largest share load / copies.
    """
    n_rows, n_experts = loads.shape
    rows = np.arange(n_rows)
    expert_of_copy = np.tile(np.arange(n_copies) % n_experts, (n_rows, 1))
    counts = np.ones((n_rows, n_experts), dtype=np.intp)
    for copy in range(n_experts, n_copies):
        shares = loads / counts.astype(loads.dtype)
        heaviest = (shares if most is None else np.where(counts < most, shares, -1)).argmax(axis=1)
        expert_of_copy[:, copy] = heaviest
        counts[rows, heaviest] += 1
    return expert_of_copy, counts


def balanced_packing(loads: Loads, n_packs: int) -> IntArray:
    """Item in each place, int[row, place]; place p belongs to pack p // (items / packs).

    Longest first: items in descending order of load (stable), each into the least loaded pack that has room. With one
    item per pack, item i stays in pack i, as in the reference.
    """
    n_rows, n_items = loads.shape
    room = n_items // n_packs
    if room == 1:
        return np.tile(np.arange(n_items), (n_rows, 1))
    rows = np.arange(n_rows)
    pack_loads = np.zeros((n_rows, n_packs), dtype=loads.dtype)
    filled = np.zeros((n_rows, n_packs), dtype=np.intp)
    item_in_place = np.empty((n_rows, n_items), dtype=np.intp)
    for items in np.argsort(-loads, axis=1, kind="stable").T:
        pack = pack_loads.argmin(axis=1)
        place = filled[rows, pack]
        item_in_place[rows, pack * room + place] = items
        filled[rows, pack] = place + 1
        # A full pack weighs infinity, so that it is never the lightest again.
        pack_loads[rows, pack] = np.where(place + 1 == room, np.inf, pack_loads[rows, pack] + loads[rows, items])
    return item_in_place


def _experts_by_node(loads: Loads, n_groups: int, n_nodes: int) -> IntArray:
    """Experts in the order of the nodes that hold them, int[layer, expert]: whole groups, packed by their load."""
    n_layers, n_experts = loads.shape
    group_loads = loads.reshape(n_layers, n_groups, -1).sum(axis=2)
    groups = balanced_packing(group_loads, n_nodes)
    group_size = n_experts // n_groups
    experts: IntArray = (groups[:, :, None] * group_size + np.arange(group_size)).reshape(n_layers, n_experts)
    return experts
