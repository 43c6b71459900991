"""What a scenario says of budgets of experts beside their places: bits of their weights, and memory tiers."""

from __future__ import annotations

from pydantic import Field, model_validator

from scenarios.sources import Spec
from scenarios.units import Bytes, Seconds


class WidthSpec(Spec):
    """One width that experts may be stored in, as its user measured it."""

    bits: float = Field(ge=0, description="bits of a weight, as the budget counts them; 0 prunes the expert")
    bytes: float = Field(
        ge=0, description="bytes of an expert over those of the model card's data type, scales included"
    )
    error: float = Field(
        ge=0, description="error of an expert's output at this width; any unit, the same for all widths"
    )


class BitsSpec(Spec):
    """Bit widths by expert within a mean over all experts (MC-MoE, arXiv 2410.06270)."""

    mean_bits: float = Field(gt=0, description="mean bits of an expert that all of them together may take")
    widths: tuple[WidthSpec, ...] = Field(min_length=1)
    each: tuple[float, ...] = Field(default=(), description="bits that at least one expert of every layer keeps")
    time_limit: Seconds = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _known_widths(self) -> BitsSpec:
        bits = [width.bits for width in self.widths]
        if len(set(bits)) < len(bits):
            raise ValueError(f"widths {bits} name one twice; give each once")
        unknown = [each for each in self.each if each not in bits]
        if unknown:
            raise ValueError(f"each names {unknown}, which are not among widths {bits}")
        return self


class TiersSpec(Spec):
    """Experts that live in device memory, and those that wait in the host's and are copied when a token wants them."""

    device: Bytes | None = Field(
        default=None, description="of each device, for routed experts; default: what other weights and KV cache leave"
    )
    host: Bytes | None = Field(
        default=None, description="of each node, for experts; default: the DRAM of its host card"
    )
    time_limit: Seconds = Field(default=30.0, gt=0)
