"""What a scenario says of training: what is kept for the backward pass, and who holds which states of the optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scenarios.models import DType
from scenarios.sources import Spec

RecomputeName = Literal["none", "selective", "full"]


class OptimizerSpec(Spec):
    """States of the optimizer, beside weights and gradients."""

    bytes_per_parameter: float = Field(
        default=12.0,
        ge=0,
        description="default: Adam in mixed precision, fp32 weights and two moments (ZeRO, arXiv 1910.02054)",
    )
    offload: Literal["none", "experts", "all"] = Field(
        default="none", description="states that the host keeps, and updates there"
    )


class TrainingSpec(Spec):
    """How a step of `workload: {phase: train}` trains: a microbatch forward and backward, sums of gradients, update."""

    recompute: RecomputeName = Field(
        default="none",
        description="what the backward pass makes again: nothing; norms and activation functions; whole layers",
    )
    optimizer: OptimizerSpec = OptimizerSpec()
    zero: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="what is divided among the devices that hold the same weights: nothing; states of the optimizer; "
        "gradients, too; weights, too",
    )
    gradient_dtype: DType | None = Field(default=None, description="default: the model's activation_dtype")
    replicas: int = Field(
        default=1,
        gt=0,
        description="clusters like this one, each with all experts, whose gradients are summed (expert data parallel)",
    )
    name: str | None = None
