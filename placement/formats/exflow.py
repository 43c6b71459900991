"""ExFlow's solution: CSV `Expert,Node`, Expert = layer x experts + expert over MoE layers, Node = GPU.

Source: the published solver of ExFlow (arXiv 2401.08383). It knows no replicas, and no order of the experts of a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from placement.formats.contents import Deployment, PlanFile
from placement.plan import Placement
from scenarios.errors import PlacementError
from scenarios.files import write_text
from traces.formats.files import csv_rows, number

COLUMNS = ("Expert", "Node")


def write(content: PlanFile, path: Path) -> None:
    """One row an expert. Raises PlacementError where the plan has replicas."""
    plan = content.placement
    if plan.redundant_slots:
        raise PlacementError(
            f"exflow has one GPU for each expert, but plan {plan.name!r} has {plan.redundant_slots} redundant slots; "
            f"solve without, or choose another format"
        )
    order = np.argsort(plan.expert_of_slot, axis=1)
    ranks = np.take_along_axis(plan.rank_of_slot, order, axis=1).ravel()
    rows = [f"{expert},{rank}" for expert, rank in enumerate(ranks.tolist())]
    write_text("\n".join([",".join(COLUMNS), *rows]) + "\n", path)


def read(path: Path, deployment: Deployment) -> Placement:
    """The plan, experts of a rank in ascending order; ranks may hold different numbers of experts."""
    n_cells = len(deployment.moe_layers) * deployment.n_experts
    ranks = np.full(n_cells, -1, np.int64)
    for where, row in csv_rows(path, COLUMNS):
        expert, rank = number(row[0], where), number(row[1], where)
        if not 0 <= expert < n_cells or not 0 <= rank < deployment.n_ranks:
            raise PlacementError(
                f"{where}: expert {expert} on GPU {rank}, but {deployment.model} has {n_cells} experts in all and the "
                f"plan {deployment.n_ranks} ranks; take the file of this model"
            )
        if ranks[expert] >= 0:
            raise PlacementError(f"{where}: expert {expert} has a GPU already; export the file again")
        ranks[expert] = rank
    missing = np.flatnonzero(ranks < 0)
    if len(missing):
        raise PlacementError(
            f"{len(missing)} of {n_cells} experts have no GPU, the first is {missing[0]}; export again"
        )
    by_layer = ranks.reshape(-1, deployment.n_experts)
    experts = np.argsort(by_layer, axis=1, kind="stable")
    return Placement(
        expert_of_slot=experts.astype(np.int32),
        rank_of_slot=np.sort(by_layer, axis=1).astype(np.int32),
        n_experts=deployment.n_experts,
        n_ranks=deployment.n_ranks,
        name=path.stem,
    )
