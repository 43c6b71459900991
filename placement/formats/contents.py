"""What a plan file holds, and what it leaves to its reader: the model and the ranks that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from scenarios.errors import PlacementError

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Model and ranks of a plan: engines know them, most of their files do not say them.

    n_layers    transformer blocks, dense ones included: SGLang numbers these.
    moe_layers  model layer number of each MoE layer: TensorRT-LLM numbers these, EPLB and ExFlow count them from 0.
    """

    model: str
    n_layers: int
    moe_layers: tuple[int, ...]
    n_experts: int
    n_ranks: int

    def rows_of_layers(self, table: NDArray[np.integer[Any]], where: str) -> NDArray[np.integer[Any]]:
        """Rows of the MoE layers of a table over all hidden layers; raises PlacementError where it has others."""
        if len(table) != self.n_layers:
            hint = " (dense layers count)" if len(table) == len(self.moe_layers) else ""
            raise PlacementError(
                f"{where} has {len(table)} layers, but {self.model} has {self.n_layers} hidden layers{hint}; "
                f"take the file of this model"
            )
        return table[list(self.moe_layers)]

    def placement(self, expert_of_slot: NDArray[np.integer[Any]], name: str) -> Placement:
        """The plan of int[MoE layer, slot], slot p on rank p // (slots / ranks), as engines lay them out.

        Raises PlacementError where layers or experts are not those of the model, or slots do not divide over the ranks.
        """
        self.check_layers(len(expert_of_slot))
        if expert_of_slot.size and expert_of_slot.min() < 0:
            raise PlacementError(
                f"a slot holds {expert_of_slot.min()}, not in 0..{self.n_experts - 1}; engines fill every slot"
            )
        return Placement.from_slots(expert_of_slot, self.n_ranks, n_experts=self.n_experts, name=name)

    def check_layers(self, n_layers: int) -> None:
        """Raise PlacementError where a file has another number of MoE layers."""
        if n_layers != len(self.moe_layers):
            raise PlacementError(
                f"the file has {n_layers} layers, but {self.model} has {len(self.moe_layers)} MoE layers; "
                f"take the file of this model"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """A plan with what files say beside it; `loads` int64[MoE layer, expert] are the counts it was fitted on.

    Raises PlacementError where the three do not belong together.
    """

    placement: Placement
    deployment: Deployment
    loads: Counts

    def __post_init__(self) -> None:
        plan, deployment = self.placement, self.deployment
        found = (plan.n_layers, plan.n_experts, plan.n_ranks)
        wanted = (len(deployment.moe_layers), deployment.n_experts, deployment.n_ranks)
        if found != wanted or self.loads.shape != wanted[:2]:
            raise PlacementError(
                f"plan {plan.name!r} is for {found} [MoE layers, experts, ranks] and loads are {self.loads.shape}, "
                f"but the deployment has {wanted}"
            )

    def slots_by_rank(self, format: str) -> NDArray[np.int32]:
        """Expert of each slot, int32[MoE layer, slot], where all ranks hold the same number of slots.

        Raises PlacementError where they do not: engines find a slot's rank by dividing.
        """
        counts = self.placement.slots_per_rank()
        if (counts != counts[0, 0]).any():
            raise PlacementError(
                f"{format} puts slot p on rank p // (slots / ranks) in every layer, but ranks of plan "
                f"{self.placement.name!r} hold {counts.min()} to {counts.max()} slots; export it as 'moesim', or solve "
                "with equal ranks and layers"
            )
        return self.placement.expert_of_slot
