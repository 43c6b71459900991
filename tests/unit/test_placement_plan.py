"""Placement, its problem and the checker, against hand numbers."""

import numpy as np
import pytest

from placement.bounds import busiest_rank_bound
from placement.checker import check_placement
from placement.plan import Placement, imbalance, rank_loads
from placement.problem import PlacementProblem, plan_name
from placement.solve import SOLVERS, solve
from placement.solver import Solver
from scenarios.errors import PlacementError, PlacementInfeasible
from scenarios.placement_specs import PlacementSpec


def uneven() -> Placement:
    """Four experts on three ranks of 3, 0 and 3 slots; expert 0 twice on rank 0, expert 3 on both ranks."""
    return Placement(
        expert_of_slot=np.array([[0, 3, 0, 1, 3, 2]]),
        rank_of_slot=np.array([[0, 0, 0, 2, 2, 2]]),
        n_experts=4,
        n_ranks=3,
        name="by hand",
    )


def test_tables_of_an_uneven_plan() -> None:
    plan = uneven()
    assert (plan.n_layers, plan.n_slots, plan.redundant_slots) == (1, 6, 2)
    assert plan.replica_counts().tolist() == [[2, 1, 1, 2]]
    assert plan.slots_per_rank().tolist() == [[3, 0, 3]]
    assert plan.slots_of_expert().tolist() == [[[0, 2], [3, -1], [5, -1], [1, 4]]]
    assert plan.duplicate_slots().tolist() == [1]


def test_max_copies_is_taken_over_all_layers() -> None:
    slots = [[0, 1, 0, 0], [1, 0, 1, 0]]
    plan = Placement.from_slots(slots, 2, n_experts=2, name="two layers")
    assert plan.rank_of_slot.tolist() == [[0, 0, 1, 1]] * 2
    assert plan.slots_of_expert().tolist() == [[[0, 2, 3], [1, -1, -1]], [[1, 3, -1], [0, 2, -1]]]
    assert plan.duplicate_slots().tolist() == [1, 0]


def test_rank_loads_and_imbalance_under_even_split() -> None:
    # rank 0: 8/2 + 6/2 + 8/2 = 11; rank 2: 5 + 6/2 + 1 = 9; mean 20/3
    loads = rank_loads(uneven(), np.array([[8.0, 5.0, 1.0, 6.0]]))
    assert loads.tolist() == [[11.0, 0.0, 9.0]]
    assert imbalance(loads) == pytest.approx([11 / (20 / 3)])
    assert imbalance(np.zeros((1, 4))).tolist() == [1.0]


def test_arrays_are_own_and_read_only() -> None:
    slots = np.array([[0, 1]], dtype=np.int64)
    plan = Placement.from_slots(slots, 2, n_experts=2, name="own")
    slots[0, 0] = 1
    assert plan.expert_of_slot.tolist() == [[0, 1]]
    assert plan.expert_of_slot.dtype == plan.rank_of_slot.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        plan.rank_of_slot[0, 0] = 1


@pytest.mark.parametrize(
    ("experts", "ranks", "message"),
    [
        ([[0, 1, 1]], [[0, 0, 1]], r"expert 2 of layer 0 has no slot \(1 such"),
        ([[0, 1, 3]], [[0, 0, 1]], r"layer 0, slot 2 holds 3, not in 0\.\.2"),
        ([[0, 1, -2]], [[0, 0, 1]], "holds -2"),
        ([[0, 1, 2**33]], [[0, 0, 1]], "holds 8589934592"),
        ([[0, 1, 2]], [[0, 0, 2]], r"rank_of_slot: layer 0, slot 2 holds 2, not in 0\.\.1"),
        ([[0, 1, 2]], [[0, 1, 0]], "decreases after slot 1 of layer 0"),
        ([[0, 1, 2]], [[0, 1]], r"shape \(1, 3\), rank_of_slot \(1, 2\)"),
        ([0, 1, 2], [[0, 0, 1]], "table of integers"),
        ([[0.0, 1.0, 2.0]], [[0, 0, 1]], "float64"),
    ],
)
def test_malformed_plans_are_refused(experts: object, ranks: object, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        Placement(
            expert_of_slot=np.array(experts), rank_of_slot=np.array(ranks), n_experts=3, n_ranks=2, name="malformed"
        )


def test_other_refusals() -> None:
    with pytest.raises(PlacementError, match="3 slots do not divide evenly over 2 ranks"):
        Placement.from_slots([[0, 1, 2]], 2, n_experts=3, name="odd")
    with pytest.raises(PlacementError, match="split 'nearest' is unknown"):
        Placement.from_slots([[0, 1]], 2, n_experts=2, name="split", split="nearest")  # type: ignore[arg-type]
    with pytest.raises(PlacementError, match=r"loads have shape \(1, 3\)"):
        rank_loads(uneven(), np.ones((1, 3)))


def problem(n_experts: int = 8, n_ranks: int = 4, redundant: int = 0, **more: int) -> PlacementProblem:
    loads = np.arange(1.0, n_experts + 1)[None]
    return PlacementProblem(
        loads=loads, n_ranks=n_ranks, ranks_per_node=more.pop("ranks_per_node", 8), redundant=redundant, **more
    )


@pytest.mark.parametrize(
    ("n_experts", "n_ranks", "redundant", "message"),
    [
        (60, 16, 0, "60 experts .* redundant 4 would, or 15 or 20 ranks"),
        (60, 16, 6, "66 slots do not divide over 16 ranks; redundant 4 or 20 would, or 11 or 22 ranks"),
        (4, 6, 0, "redundant 2 would, or 4 ranks"),
        (8, 4, 25, "redundant is 25, but 8 experts on 4 ranks can use at most 24"),
    ],
)
def test_impossible_slot_counts_name_what_works(n_experts: int, n_ranks: int, redundant: int, message: str) -> None:
    with pytest.raises(PlacementInfeasible, match=message) as caught:
        problem(n_experts, n_ranks, redundant)
    assert caught.value.exit_code == 3


def test_malformed_problems_are_refused() -> None:
    with pytest.raises(PlacementError, match="loads of layer 0, expert 1: -2"):
        PlacementProblem(loads=np.array([[1.0, -2.0]]), n_ranks=2, ranks_per_node=2)
    with pytest.raises(PlacementError, match="expert 1: nan is not a finite number"):
        PlacementProblem(loads=np.array([[1.0, np.nan]]), n_ranks=2, ranks_per_node=2)
    with pytest.raises(PlacementError, match="seed is -1"):
        problem(seed=-1)
    with pytest.raises(PlacementError, match="4 ranks do not fill nodes of 3"):
        problem(ranks_per_node=3)
    with pytest.raises(PlacementError, match="8 experts are not divisible into 3 groups"):
        problem(n_groups=3)


def test_nodes_of_a_problem() -> None:
    assert problem(n_ranks=4, ranks_per_node=8).n_nodes == 1
    assert problem(n_ranks=4, ranks_per_node=2).n_nodes == 2


def test_an_empty_layer_counts_as_uniform() -> None:
    tokens = np.array([[0.0, 0.0], [3.0, 0.0]])
    assert PlacementProblem(loads=tokens, n_ranks=2, ranks_per_node=2).loads_or_uniform().tolist() == [[1, 1], [3, 0]]


def corrupted(field: str, values: list[list[int]]) -> Placement:
    plan = Placement.from_slots([[0, 1, 2, 3]], 2, n_experts=4, name="corrupted")
    object.__setattr__(plan, field, np.array(values))
    return plan


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("expert_of_slot", [[0, 1, 2, 2]], "layer 0: expert 3 has no slot"),
        ("expert_of_slot", [[0, 1, 2, 4]], r"expert 4 out of 0\.\.3; layer 0: expert 3 has no slot"),
        ("expert_of_slot", [[0, 1, 2]], "3 experts and 4 ranks of slots, not 4"),
        ("rank_of_slot", [[0, 0, 0, 1]], "rank 0 holds 3 of 4 slots"),
        ("rank_of_slot", [[0, 0, 1, 2]], r"rank 2 out of 0\.\.1; layer 0: rank 1 holds 1"),
    ],
)
def test_checker_lists_violations(field: str, values: list[list[int]], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        check_placement(corrupted(field, values), problem(4, 2))


def test_checker_refuses_a_plan_of_another_problem() -> None:
    plan = Placement.from_slots([[0, 1, 2, 3]], 2, n_experts=4, name="other")
    check_placement(plan, problem(4, 2))
    with pytest.raises(PlacementError, match=r"\(1, 4, 2\).*\(1, 8, 2\)"):
        check_placement(plan, problem(8, 2))
    with pytest.raises(PlacementError, match="not 6"):
        check_placement(plan, problem(4, 2, redundant=2))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (PlacementSpec(), "contiguous"),
        (PlacementSpec(solver="eplb", redundant=8), "eplb+8"),
        (PlacementSpec(solver="eplb", hierarchical=False), "eplb-global"),
        (
            PlacementSpec(solver="greedy", hierarchical=False, split="least-loaded", redundant=4),
            "greedy+4 least-loaded",
        ),
        (PlacementSpec(solver="random", seed=3), "random seed 3"),
        (PlacementSpec(solver="random", name="mine"), "mine"),
    ],
)
def test_default_names(spec: PlacementSpec, name: str) -> None:
    assert plan_name(spec) == name


def test_fixed_patterns() -> None:
    def slots(solver: str, n_experts: int, n_ranks: int, redundant: int) -> list[list[int]]:
        spec = PlacementSpec(solver=solver, redundant=redundant)
        plan = solve(problem(n_experts, n_ranks, redundant), spec).placement
        return plan.expert_of_slot.reshape(n_ranks, -1).tolist()

    assert slots("contiguous", 4, 2, 0) == [[0, 1], [2, 3]]
    assert slots("round-robin", 4, 2, 0) == [[0, 2], [1, 3]]
    assert slots("contiguous", 4, 2, 2) == [[0, 1, 2], [3, 0, 1]]
    # Dealing on plainly would give rank 0 expert 0 again: the second round starts one rank later.
    assert slots("round-robin", 4, 2, 2) == [[0, 2, 1], [1, 3, 0]]
    assert slots("contiguous", 4, 6, 2) == [[0], [1], [2], [3], [0], [1]]


def test_round_robin_never_repeats_an_expert_on_a_rank() -> None:
    for n_experts, n_ranks in ((6, 4), (8, 4), (9, 6), (5, 3)):
        step = next(r for r in range(1, n_ranks + 1) if (n_experts + r) % n_ranks == 0)
        for redundant in range(step, n_experts * (n_ranks - 1) + 1, n_ranks):
            spec = PlacementSpec(solver="round-robin", redundant=redundant)
            assert not solve(problem(n_experts, n_ranks, redundant), spec).placement.duplicate_slots().any()


def test_greedy_by_hand() -> None:
    # Loads 8..1 on 4 ranks of 2: the largest with the smallest, 9 each, which is the mean.
    solved = solve(problem(8, 4), PlacementSpec(solver="greedy"))
    assert solved.placement.expert_of_slot.tolist() == [[7, 0, 6, 1, 5, 2, 4, 3]]
    assert (solved.status, solved.objective, solved.bound, solved.gap) == ("optimal", 9.0, 9.0, 0.0)


def test_greedy_copies_an_expert_at_most_once_per_rank() -> None:
    # One hot expert, 2 ranks: two copies of it, the other replicas go to the rest.
    loads = np.array([[90.0, 2.0, 1.0]])
    hot = PlacementProblem(loads=loads, n_ranks=2, ranks_per_node=2, redundant=3)
    plan = solve(hot, PlacementSpec(solver="greedy", redundant=3)).placement
    assert plan.replica_counts().tolist() == [[2, 2, 2]]
    assert plan.duplicate_slots().tolist() == [0]


def test_greedy_prefers_a_rank_without_the_expert() -> None:
    # Shares 9, 4.5, 4.5, 1: longest first alone would put both copies of expert 0 beside each other, on rank 1.
    problem = PlacementProblem(loads=np.array([[9.0, 9.0, 1.0]]), n_ranks=2, ranks_per_node=2, redundant=1)
    greedy, eplb = (solve(problem, PlacementSpec(solver=name, redundant=1)).placement for name in ("greedy", "eplb"))
    assert greedy.expert_of_slot.tolist() == [[1, 0, 0, 2]]
    assert eplb.expert_of_slot.tolist() == [[1, 2, 0, 0]]


def test_gap_is_relative_to_the_bound() -> None:
    solved = solve(problem(8, 4), PlacementSpec())
    assert (solved.status, solved.objective, solved.bound) == ("heuristic", 15.0, 9.0)
    assert solved.gap == pytest.approx(6 / 9)
    idle = PlacementProblem(loads=np.zeros((2, 4)), n_ranks=2, ranks_per_node=2)
    rested = solve(idle, PlacementSpec())
    assert (rested.status, rested.objective, rested.bound, rested.gap) == ("optimal", 0.0, 0.0, 0.0)


def test_bound_by_hand() -> None:
    # Mean 26/3; the hottest expert has one of the smallest beside it: 9 + 1; of the 4 largest two meet: 5 + 5.
    assert busiest_rank_bound(np.array([[9.0, 6, 5, 5, 1, 0]]), n_slots=6, n_ranks=3) == pytest.approx([10])
    assert busiest_rank_bound(np.array([[9.0, 6, 6, 6, 1, 0]]), n_slots=6, n_ranks=3) == pytest.approx([12])
    assert busiest_rank_bound(np.array([[18.0, 6, 6, 6, 1, 5]]), n_slots=6, n_ranks=3) == pytest.approx([19])
    # Three replicas: copies of 6, 6, 6 of the hottest and one copy more, 5/2 each; the mean 32/3 is above.
    loads = np.array([[18.0, 5, 4, 3, 1, 1]])
    assert busiest_rank_bound(loads, n_slots=9, n_ranks=3) == pytest.approx([32 / 3])
    # Three slots a rank: two of the 3 largest meet, and the smallest is the least that lies beside: 9 + 9 + 2.
    assert busiest_rank_bound(np.array([[9.0, 9, 9, 2, 2, 2]]), n_slots=6, n_ranks=2) == pytest.approx([20])
    # One replica: the hottest is at best halved, and what lies beside may be the replica of a small one.
    assert busiest_rank_bound(np.array([[100.0, 1, 1, 1, 1, 1, 1]]), n_slots=8, n_ranks=4) == pytest.approx([50])
    # One replica, ten loads of 1, eight ranks: nine stay whole, so two of them meet.
    assert busiest_rank_bound(np.array([[1.0] * 10 + [0.0] * 5]), n_slots=16, n_ranks=8) == pytest.approx([2])


def test_every_plan_of_a_solver_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    lopsided = Placement(
        expert_of_slot=np.arange(8, dtype=np.int32)[None],
        rank_of_slot=np.array([[0] * 5 + [1, 2, 3]]),
        n_experts=8,
        n_ranks=4,
        name="bad",
    )
    monkeypatch.setitem(SOLVERS, "greedy", Solver(plan=lambda *_: lopsided))
    with pytest.raises(PlacementError, match="'bad' breaks its problem: layer 0: rank 0 holds 5 of 8 slots"):
        solve(problem(), PlacementSpec(solver="greedy"))


def test_problem_and_spec_must_agree() -> None:
    with pytest.raises(PlacementError, match="asks for 4 redundant slots, the problem has 0"):
        solve(problem(), PlacementSpec(redundant=4))
