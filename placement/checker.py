"""An independent check of a plan against its problem, in plain loops that share no code with the solvers."""

from __future__ import annotations

from placement.plan import EMPTY, Placement
from placement.problem import PlacementProblem
from scenarios.errors import PlacementError

SHOWN = 8


def check_placement(placement: Placement, problem: PlacementProblem) -> None:
    """Raise PlacementError, listing what is wrong, unless the plan solves the problem.

    Every expert at least once in each layer, experts + redundant slots, as many on each rank, ids in range. Of replicas
    that layers share: in each layer one of the sizes, and no more in all than there are.
    """
    n_layers, n_experts = len(problem.loads), len(problem.loads[0])
    found = (len(placement.expert_of_slot), placement.n_experts, placement.n_ranks)
    if found != (n_layers, n_experts, problem.n_ranks):
        raise PlacementError(
            f"plan {placement.name!r} is for {found} [layers, experts, ranks], "
            f"the problem has {(n_layers, n_experts, problem.n_ranks)}"
        )
    violations: list[str] = []
    replicas = 0
    for layer in range(n_layers):
        experts = [int(expert) for expert in placement.expert_of_slot[layer]]
        ranks = [int(rank) for rank in placement.rank_of_slot[layer]]
        redundant = problem.redundant
        if problem.shared is not None:
            filled = [slot for slot, expert in enumerate(experts) if expert != EMPTY]
            experts, ranks = [experts[slot] for slot in filled], [ranks[slot] for slot in filled]
            redundant = len(filled) - n_experts
            replicas += redundant
            if redundant not in problem.shared.sizes:
                violations.append(f"layer {layer}: {redundant} redundant slots, not one of {problem.shared.sizes}")
        violations += [
            f"layer {layer}: {text}" for text in _violations(experts, ranks, (problem.n_ranks, redundant), n_experts)
        ]
    if problem.shared is not None and replicas > problem.shared.total:
        violations.append(f"{replicas} redundant slots in all layers, more than {problem.shared.total}")
    if violations:
        more = f"; and {len(violations) - SHOWN} more" if len(violations) > SHOWN else ""
        raise PlacementError(f"plan {placement.name!r} breaks its problem: {'; '.join(violations[:SHOWN])}{more}")


def _violations(experts: list[int], ranks: list[int], size: tuple[int, int], n_experts: int) -> list[str]:
    """What is wrong with one layer, one sentence each; `size`: ranks, redundant slots."""
    n_ranks, redundant = size
    n_slots = n_experts + redundant
    found = []
    if len(experts) != n_slots or len(ranks) != n_slots:
        found.append(f"{len(experts)} experts and {len(ranks)} ranks of slots, not {n_slots}")
    found += [f"expert {expert} out of 0..{n_experts - 1}" for expert in experts if not 0 <= expert < n_experts]
    found += [f"rank {rank} out of 0..{n_ranks - 1}" for rank in ranks if not 0 <= rank < n_ranks]
    present = set(experts)
    found += [f"expert {expert} has no slot" for expert in range(n_experts) if expert not in present]
    for rank in range(n_ranks):
        held = ranks.count(rank)
        if held * n_ranks != n_slots:
            found.append(f"rank {rank} holds {held} of {n_slots} slots, not 1 in {n_ranks}")
    return found
