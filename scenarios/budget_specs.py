"""What a scenario says of budgets of experts beside their places: bits of their weights, and memory tiers."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, model_validator

from scenarios.models import DType
from scenarios.sources import Spec
from scenarios.units import Bytes, Seconds


class KernelSpec(Spec):
    """The kernel that multiplies experts of a width: the law of a data type, or a factor that was measured over it."""

    dtype: DType | None = Field(
        default=None,
        description="data type whose kernel law it takes, reading this width's bytes; default: the model's own where "
        "the bytes are its, else the narrowest of int4, int8 and 16 bits that holds the bits",
    )
    time_frac: float | None = Field(
        default=None, gt=0, description="its measured time over that of the kernel of `dtype` with all bytes of it"
    )
    source: str | None = Field(default=None, description="where time_frac was measured")

    @model_validator(mode="after")
    def _sourced(self) -> KernelSpec:
        if self.time_frac is not None and not (self.source and self.dtype):
            raise ValueError("time_frac is a measurement: give its source, and the dtype that it is relative to")
        return self


class WidthSpec(Spec):
    """One width that experts may be stored in, as its user measured it."""

    bits: float = Field(ge=0, description="bits of a weight, as the budget counts them; 0 prunes the expert")
    bytes: float = Field(
        ge=0, description="bytes of an expert over those of the model card's data type, scales included"
    )
    error: float = Field(
        default=0.0, ge=0, description="error of an expert's output at this width; any unit, the same for all widths"
    )
    kernel: KernelSpec = KernelSpec()


TABLES = ("mean_bits", "uniform", "by_layer", "by_expert", "file")
"""Ways to say which expert has which width."""


class BitsSpec(Spec):
    """Bit widths by expert: within a mean over all of them (MC-MoE, arXiv 2410.06270), or a table of one's own."""

    widths: tuple[WidthSpec, ...] = Field(min_length=1)
    mean_bits: float | None = Field(
        default=None, gt=0, description="mean bits of an expert that all of them together may take; widths are chosen"
    )
    uniform: float | None = Field(default=None, description="bits of every expert")
    by_layer: tuple[float, ...] | None = Field(default=None, description="bits of the experts of every MoE layer")
    by_expert: tuple[tuple[float, ...], ...] | None = Field(default=None, description="bits, [MoE layer][expert]")
    file: str | None = Field(
        default=None, description="JSON with bits [MoE layer][expert], or a result of `moesim place --json`"
    )
    each: tuple[float, ...] = Field(default=(), description="bits that at least one expert of every layer keeps")
    time_limit: Seconds = Field(default=30.0, gt=0)
    name: str | None = None

    @model_validator(mode="after")
    def _known_widths(self) -> BitsSpec:
        bits = [width.bits for width in self.widths]
        if len(set(bits)) < len(bits):
            raise ValueError(f"widths {bits} name one twice; give each once")
        unknown = [each for each in self.each if each not in bits]
        if unknown:
            raise ValueError(f"each names {unknown}, which are not among widths {bits}")
        given = [name for name in TABLES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(TABLES)}" + (f", not {', '.join(given)}" if given else ""))
        for name, table in self._tables():
            outside = sorted(set(table) - set(bits))
            if outside:
                raise ValueError(f"{name} names {outside[0]:g} bits, which is not among widths {bits}; add that width")
        return self

    def _tables(self) -> Iterator[tuple[str, tuple[float, ...]]]:
        if self.uniform is not None:
            yield "uniform", (self.uniform,)
        yield "by_layer", self.by_layer or ()
        yield from (("by_expert", row) for row in self.by_expert or ())


class TiersSpec(Spec):
    """Experts that live in device memory, and those that wait in the host's and are copied when a token wants them."""

    device: Bytes | None = Field(
        default=None, description="of each device, for routed experts; default: what other weights and KV cache leave"
    )
    host: Bytes | None = Field(
        default=None, description="of each node, for experts; default: the DRAM of its host card"
    )
    time_limit: Seconds = Field(default=30.0, gt=0)
