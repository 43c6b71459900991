"""Cards of kernel constants: for each operation and data type, which law predicts its time, with which constants."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from hwmodels.constants import (
    DecodeConstants,
    GemmConstants,
    MlaDecodeConstants,
    MlaPrefillConstants,
    MoeConstants,
    PrefillConstants,
    Roofline,
)
from hwmodels.core_constants import (
    ChoiceConstants,
    CoreDecodeConstants,
    CoreGemmConstants,
    CoreMoeConstants,
    CorePrefillConstants,
)
from hwmodels.fitted import Fitted, stretched
from hwmodels.launch import LaunchConstants
from scenarios.errors import HardwareError
from scenarios.models import DType
from scenarios.sources import Spec

ANY = "any"
BlockName = Literal["moe", "gemm", "prefill", "decode", "mla_prefill", "mla_decode"]
DTypeOrAny = DType | Literal["any"]
"""Key of a block: the data type of weights (of the cache, for attention), or `any` for those not listed."""

MoeLaw = Annotated[MoeConstants | CoreMoeConstants | Roofline, Field(discriminator="law")]
GemmLaw = Annotated[GemmConstants | CoreGemmConstants | Roofline, Field(discriminator="law")]
PrefillLaw = Annotated[PrefillConstants | CorePrefillConstants | Roofline, Field(discriminator="law")]
DecodeLaw = Annotated[DecodeConstants | CoreDecodeConstants | Roofline, Field(discriminator="law")]
MlaPrefillLaw = Annotated[MlaPrefillConstants | Roofline, Field(discriminator="law")]
MlaDecodeLaw = Annotated[MlaDecodeConstants | Roofline, Field(discriminator="law")]


class KernelCard(Spec):
    """Constants of the kernel laws by operation and data type, often of one engine on one device.

    What a card does not hold for a data type is taken from `base`, and from that card's base in turn; `any` counts only
    where no card of the chain has the data type itself. Where a table holds a shape, its times correct the law
    (`hwmodels.measured_tables`).
    """

    name: str
    base: str | None = Field(default=None, description="card that stands in for what this one does not hold")
    moe: dict[DTypeOrAny, MoeLaw] = Field(default_factory=dict)
    gemm: dict[DTypeOrAny, GemmLaw] = Field(default_factory=dict)
    prefill: dict[DTypeOrAny, PrefillLaw] = Field(default_factory=dict)
    decode: dict[DTypeOrAny, DecodeLaw] = Field(default_factory=dict)
    mla_prefill: dict[DTypeOrAny, MlaPrefillLaw] = Field(default_factory=dict)
    mla_decode: dict[DTypeOrAny, MlaDecodeLaw] = Field(default_factory=dict)
    launch: LaunchConstants | None = None
    choice: ChoiceConstants | None = Field(default=None, description="of the router; none: one small kernel")
    tables: dict[BlockName, str | tuple[str, ...]] = Field(
        default_factory=dict, description="files of measured times by operation, relative to the card's file"
    )
    note: str | None = None

    def below(self, folder: Path) -> KernelCard:
        """The card with its tables named from `folder`."""
        files = {block: (names,) if isinstance(names, str) else names for block, names in self.tables.items()}
        return self.model_copy(
            update={"tables": {block: tuple(str(folder / name) for name in names) for block, names in files.items()}}
        )


BLOCKS: tuple[BlockName, ...] = get_args(BlockName)
"""Fields of a card that hold constants by data type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """A kernel card with the cards that stand in for it, in order."""

    cards: tuple[KernelCard, ...]

    @property
    def name(self) -> str:
        """Name of the first card."""
        return self.cards[0].name

    def moe(self, dtype: str) -> MoeConstants | CoreMoeConstants | Roofline:
        """Law of routed experts with weights of `dtype`; raises HardwareError where there is none."""
        return self.find("moe", dtype)  # type: ignore[return-value]

    def gemm(self, dtype: str) -> GemmConstants | CoreGemmConstants | Roofline:
        """Law of dense products with weights of `dtype`; raises HardwareError where there is none."""
        return self.find("gemm", dtype)  # type: ignore[return-value]

    def prefill(self, dtype: str) -> PrefillConstants | CorePrefillConstants | Roofline:
        """Law of prefill with a cache of `dtype`; raises HardwareError where there is none."""
        return self.find("prefill", dtype)  # type: ignore[return-value]

    def decode(self, dtype: str) -> DecodeConstants | CoreDecodeConstants | Roofline:
        """Law of decode with a cache of `dtype`; raises HardwareError where there is none."""
        return self.find("decode", dtype)  # type: ignore[return-value]

    def mla_prefill(self, dtype: str) -> MlaPrefillConstants | Roofline:
        """Law of prefill with MLA and a cache of `dtype`; raises HardwareError where there is none."""
        return self.find("mla_prefill", dtype)  # type: ignore[return-value]

    def mla_decode(self, dtype: str) -> MlaDecodeConstants | Roofline:
        """Law of decode with MLA and a cache of `dtype`; raises HardwareError where there is none."""
        return self.find("mla_decode", dtype)  # type: ignore[return-value]

    def launch(self) -> LaunchConstants:
        """Law of small kernels and launches; raises HardwareError where there is none."""
        for card in self.cards:
            if card.launch is not None:
                return card.launch
        raise HardwareError(f"kernel card {self.name} has no constants of launch, and no base that has them")

    def choice(self) -> ChoiceConstants | None:
        """Law of the router's choice; None where no card of the chain has one, and it counts as one small kernel."""
        return next((card.choice for card in self.cards if card.choice is not None), None)

    def tables(self) -> dict[BlockName, tuple[Path, ...]]:
        """Files of measured times by operation, each from the first card that states any."""
        found: dict[BlockName, tuple[Path, ...]] = {}
        for card in self.cards:
            for block, names in card.tables.items():
                paths = (names,) if isinstance(names, str) else names
                found.setdefault(block, tuple(Path(name) for name in paths))
        return found

    def find(self, block: str, dtype: str) -> Fitted:
        """Constants of a block for a data type; raises HardwareError where no card of the chain has them."""
        for key in (dtype, ANY):
            for card in self.cards:
                found: Fitted | None = getattr(card, block).get(key)
                if found is not None:
                    return found
        have = sorted({key for card in self.cards for key in getattr(card, block)})
        remedy = f"it has {', '.join(have)}; add `{ANY}:` or a base that has it" if have else "name a base that has it"
        raise HardwareError(f"kernel card {self.name} has no constants of {block} for {dtype} ({remedy})")


def stretched_to(kernels: Kernels, blocks: Collection[str], end: Literal["low", "high"]) -> Kernels:
    """The kernels with every law of these blocks at one end of its own 80 % band of measured over predicted time."""
    place = {"low": 0, "high": 1}[end]

    def moved(card: KernelCard) -> KernelCard:
        laws: dict[str, object] = {
            block: {dtype: stretched(law, law.low_high[place]) for dtype, law in getattr(card, block).items()}
            for block in BLOCKS
            if block in blocks
        }
        if "launch" in blocks and card.launch is not None and card.launch.device_band is not None:
            laws["launch"] = stretched(card.launch, getattr(card.launch.device_band, end))
        return card.model_copy(update=laws)

    return Kernels(cards=tuple(moved(card) for card in kernels.cards))


def blocks_of(card: KernelCard) -> Iterator[tuple[str, Fitted]]:
    """("moe bf16", constants) of every block of a card."""
    for block in BLOCKS:
        for dtype, constants in getattr(card, block).items():
            yield f"{block} {dtype}", constants
    if card.launch is not None:
        yield "launch", card.launch
    if card.choice is not None:
        yield "choice", card.choice
