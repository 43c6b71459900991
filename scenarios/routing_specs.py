"""What a scenario says of routes beside their trace: which experts a token takes in the end, and which it loses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scenarios.sources import Spec
from scenarios.units import Bytes

DropOrder = Literal["position", "weight", "random"]
Count = Annotated[int, Field(ge=0)]
OF_CAPACITY = ("drop", "group", "min_capacity", "pad")


class MaskSpec(Spec):
    """Experts that are kept; choices of the others are drawn anew among the kept, in proportion to their loads.

    `keep` and `device` keep those of the highest scores on the fitted part of the trace (EASY-EP, arXiv 2504.06792).
    """

    keep: float | None = Field(default=None, gt=0, le=1, description="share of a layer's experts")
    device: Bytes | None = Field(
        default=None,
        gt=0,
        description="room for routed experts on each device: as many are kept as fit, as many on each rank",
    )
    by: Literal["load", "weight"] = Field(
        default="load", description="score of an expert: tokens that chose it, or the sum of their gate weights for it"
    )
    prune: bool = Field(
        default=False, description="the others are not stored: a layer has the kept ones alone, numbered in their order"
    )
    experts: tuple[Count, ...] | tuple[tuple[Count, ...], ...] | None = Field(
        default=None, description="the experts themselves: one list for all MoE layers, or a list for each"
    )

    @model_validator(mode="after")
    def _one_way(self) -> MaskSpec:
        if [self.keep, self.device, self.experts].count(None) != 2:
            raise ValueError("give one of 'keep: SHARE', 'device: BYTES' and 'experts: [...]'")
        if self.experts is not None and self.by != "load":
            raise ValueError("by scores experts for keep and device; with a list of experts leave it out")
        return self


class RoutingSpec(Spec):
    """Transforms of the routes of a trace, in the order of these fields; see docs/reference/schedules.md."""

    mask: MaskSpec | None = None
    top_k: int | None = Field(default=None, gt=0, description="choices that a token keeps: its best by gate weight")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="a token's best choices until their gate weights reach this sum"
    )
    null_experts: int | None = Field(default=None, gt=0, description="experts of no cost beside the model's (AdaMoE)")
    null_by: Literal["weight", "chance"] = Field(
        default="weight", description="choices that go to null experts: those of least gate weight, or random ones"
    )
    iterations: int = Field(
        default=1, gt=0, description="times that a MoE layer is run, each with its part of a token's choices"
    )
    capacity_factor: float | None = Field(
        default=None, gt=0, description="an expert takes factor x k x tokens / experts of a group, rounded up (GShard)"
    )
    drop: DropOrder = Field(
        default="position",
        description="what stays where an expert is full: what comes first, first choices before second ones (GShard), "
        "what has the largest gate weight, or random choices",
    )
    group: Literal["device", "sequence", "step"] = Field(
        default="device", description="tokens that share a capacity: of a device in a step, a request, or a whole step"
    )
    min_capacity: int = Field(default=0, ge=0, description="tokens that an expert takes of a group at least")
    pad: bool = Field(default=False, description="experts get and compute their whole capacity, used or not")
    seed: int = Field(default=0, ge=0, description="of what is drawn at random")

    @model_validator(mode="before")
    @classmethod
    def _capacity_first(cls, raw: Any) -> Any:
        idle = sorted(set(OF_CAPACITY) & set(raw)) if isinstance(raw, dict) else []
        if idle and raw.get("capacity_factor") is None:
            raise ValueError(f"{', '.join(idle)}: an option of capacity_factor, which is missing")
        return raw

    @model_validator(mode="after")
    def _own_options(self) -> RoutingSpec:
        if self.null_by != "weight" and self.null_experts is None:
            raise ValueError("null_by is an option of null_experts, which is missing")
        if self.pad and self.group == "sequence":
            raise ValueError("pad fills buffers of a device or a step: group device or step, not sequence")
        return self

    @property
    def changes(self) -> bool:
        """Whether anything is changed at all."""
        return self != RoutingSpec()
