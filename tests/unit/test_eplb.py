"""EPLB against its published example and a plain loop.

Weights and the hierarchical map are from the README of github.com/deepseek-ai/EPLB; the global map and the imbalances
were computed with an independent port.
"""

import numpy as np
import pytest

from placement.eplb import balanced_packing, rebalance_experts, replicate_experts
from placement.plan import imbalance, rank_loads
from placement.problem import PlacementProblem
from placement.solve import solve
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec

LOADS = np.array(
    [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]],
    dtype=np.float64,
)
PUBLISHED = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
PUBLISHED_COUNTS = [[1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1], [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]]
GLOBAL_LAYER_0 = [10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1]


def example(n_groups: int = 4) -> PlacementProblem:
    return PlacementProblem(loads=LOADS, n_ranks=8, ranks_per_node=4, redundant=4, n_groups=n_groups)


@pytest.mark.parametrize("hierarchical", [None, True])
def test_published_example_hierarchical(hierarchical: bool | None) -> None:
    plan = solve(example(), PlacementSpec(solver="eplb", redundant=4, hierarchical=hierarchical)).placement
    assert plan.expert_of_slot.tolist() == PUBLISHED
    assert plan.replica_counts().tolist() == PUBLISHED_COUNTS
    loads = rank_loads(plan, LOADS)
    assert loads.max(axis=1).tolist() == [156, 179.5]
    assert imbalance(loads) == pytest.approx([156 / 129.125, 179.5 / 144.5])
    assert imbalance(loads) == pytest.approx([1.208, 1.242], abs=5e-4)


@pytest.mark.parametrize(("n_groups", "hierarchical"), [(4, False), (3, None), (3, False)])
def test_published_example_global(n_groups: int, hierarchical: bool | None) -> None:
    spec = PlacementSpec(solver="eplb", redundant=4, hierarchical=hierarchical)
    plan = solve(example(n_groups), spec).placement
    assert plan.expert_of_slot[0].tolist() == GLOBAL_LAYER_0
    assert imbalance(rank_loads(plan, LOADS))[0] == pytest.approx(1.073, abs=5e-4)


def test_hierarchical_needs_nodes_that_divide_the_groups() -> None:
    with pytest.raises(PlacementError, match="3 groups do not divide over 2 nodes; set 'hierarchical: false'"):
        solve(example(3), PlacementSpec(solver="eplb", redundant=4, hierarchical=True))


def test_hierarchical_keeps_groups_in_their_node() -> None:
    plan = solve(example(), PlacementSpec(solver="eplb", redundant=4)).placement
    for slots in plan.expert_of_slot:
        groups = [set((half // 3).tolist()) for half in (slots[:8], slots[8:])]
        assert [len(held) for held in groups] == [2, 2]
        assert not groups[0] & groups[1]


def test_replicas_go_to_the_largest_share_and_the_lowest_index() -> None:
    # 12, 12, 4: expert 0 first (tie), then 1 (12 against 6), then 0 again (6 against 6).
    experts, counts = replicate_experts(np.array([[12.0, 12.0, 4.0]]), 6)
    assert experts.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert counts.tolist() == [[3, 2, 1]]


def test_packing_breaks_ties_by_index_and_keeps_room() -> None:
    assert balanced_packing(np.array([[1.0, 9.0, 1.0, 1.0]]), 2).tolist() == [[1, 3, 0, 2]]
    assert balanced_packing(np.array([[1.0, 9.0, 5.0]]), 3).tolist() == [[0, 1, 2]]


def test_no_load_at_all_follows_the_reference_in_the_function_and_is_uniform_in_the_solver() -> None:
    idle = np.zeros((1, 4))
    slots = rebalance_experts(idle, n_slots=6, n_groups=1, n_nodes=1, n_ranks=2)
    assert np.bincount(slots[0]).tolist() == [3, 1, 1, 1]
    problem = PlacementProblem(loads=idle, n_ranks=2, ranks_per_node=2, redundant=2)
    plan = solve(problem, PlacementSpec(solver="eplb", redundant=2)).placement
    assert plan.replica_counts().tolist() == [[2, 2, 1, 1]]


def test_near_ties_fall_as_in_float32() -> None:
    # 2**24 + 1 has no float32 of its own: the reference sees two equal loads and takes the lower index.
    near = np.array([[2.0**24, 2.0**24 + 1, 1.0]])
    slots = rebalance_experts(near, n_slots=4, n_groups=1, n_nodes=1, n_ranks=2)
    assert np.bincount(slots[0]).tolist() == [2, 1, 1]


def looped(loads: list[float], n_slots: int, n_ranks: int) -> list[int]:
    """The global policy for one layer, as a plain loop in float32."""
    weights = [np.float32(load) for load in loads]
    experts, counts = list(range(len(weights))), [1] * len(weights)
    while len(experts) < n_slots:
        shares = [np.float32(weight / np.float32(count)) for weight, count in zip(weights, counts, strict=True)]
        experts.append(shares.index(max(shares)))
        counts[experts[-1]] += 1
    shares = [np.float32(weights[expert] / np.float32(counts[expert])) for expert in experts]
    ranks: list[list[int]] = [[] for _ in range(n_ranks)]
    totals = [np.float32(0)] * n_ranks
    for copy in sorted(range(n_slots), key=lambda copy: -shares[copy]):
        rank = min((r for r in range(n_ranks) if len(ranks[r]) < n_slots // n_ranks), key=totals.__getitem__)
        ranks[rank].append(experts[copy])
        totals[rank] = np.float32(totals[rank] + shares[copy])
    return [expert for rank in ranks for expert in rank]


@pytest.mark.parametrize("top", [5, 1000, 10**9])
def test_all_layers_at_once_equal_a_plain_loop(top: int) -> None:
    loads = np.random.default_rng(top).integers(0, top, (6, 16)).astype(np.float64)
    slots = rebalance_experts(loads, n_slots=24, n_groups=1, n_nodes=1, n_ranks=4)
    assert slots.tolist() == [looped(layer.tolist(), 24, 4) for layer in loads]
