"""How the tokens of experts lie on their copies: what a placement with replicas changes for each expert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from placement.reduction import Reduction


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoads:
    """Experts of every MoE layer, [layer, expert] each.

    fullest_share  float64: tokens of the expert's fullest copy over the mean of the layer's experts.
    copies         int64: slots that hold the expert.
    """

    fullest_share: NDArray[np.float64]
    copies: NDArray[np.int64]


def expert_loads(placement: Placement, reduction: Reduction) -> ExpertLoads:
    """Loads of the tokens that came to the slots, over all steps."""
    tokens = reduction.slot_tokens.sum(axis=1, dtype=np.float64)
    by_slot = tokens.reshape(placement.n_layers, -1, placement.n_slots).sum(axis=1)
    fullest = np.zeros((placement.n_layers, placement.n_experts))
    layers, slots = np.nonzero(placement.filled)
    np.maximum.at(fullest, (layers, placement.expert_of_slot[layers, slots]), by_slot[layers, slots])
    mean = by_slot.sum(axis=1, keepdims=True) / placement.n_experts
    share = np.divide(fullest, mean, out=np.ones_like(fullest), where=mean > 0)
    return ExpertLoads(fullest_share=share, copies=placement.replica_counts().astype(np.int64))
