"""The kernel cards that moesim ships: which tables each is fitted on. Run as a module to write them anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hwmodels.calibration.card import Calibration, calibrate, card_yaml
from hwmodels.cards import DeviceCard
from hwmodels.devices import Device
from hwmodels.library import LIBRARY, find_device, find_kernels
from hwmodels.validation.tables import ORIGIN, Table, tables_folder
from hwmodels.validation.timings import Timings, read_timings
from scenarios.files import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedCard:
    """A kernel card of one engine on one device; `base` stands in for what the tables do not hold."""

    name: str
    device: str
    base: str
    tables: tuple[Table, ...]


def _tables(system: str, engine: str, version: str, kinds: Iterable[str]) -> tuple[Table, ...]:
    families = {"context_attention": "attention", "generation_attention": "attention"}
    families |= {"context_mla": "mla", "generation_mla": "mla"}
    return tuple(
        Table(system=system, family=families.get(kind, kind), engine=engine, version=version, table=kind)
        for kind in kinds
    )


ATTENTION = ("context_attention", "generation_attention")
MLA = ("context_mla", "generation_mla")

SHIPPED = (
    ShippedCard(
        name="h200-trtllm",
        device="h200-sxm",
        base="datasheet-only",
        tables=_tables("h200_sxm", "trtllm", "1.3.0rc20", ("moe", "gemm", *MLA)),
    ),
    ShippedCard(
        name="h200-vllm",
        device="h200-sxm",
        base="h200-vllm-launch",
        tables=_tables("h200_sxm", "vllm", "0.24.0", ("moe", "gemm", *ATTENTION)),
    ),
    ShippedCard(
        name="h200-sglang",
        device="h200-sxm",
        base="h200-sglang-launch",
        tables=_tables("h200_sxm", "sglang", "0.5.14", ("moe", *ATTENTION, *MLA)),
    ),
    ShippedCard(
        name="h100-trtllm",
        device="h100-sxm",
        base="datasheet-only",
        tables=_tables("h100_sxm", "trtllm", "1.3.0rc20", ("moe", "gemm", *MLA)),
    ),
    ShippedCard(
        name="h100-vllm",
        device="h100-sxm",
        base="h100-vllm-launch",
        tables=_tables("h100_sxm", "vllm", "0.24.0", ("moe", "gemm", *ATTENTION)),
    ),
    ShippedCard(
        name="b200-vllm",
        device="b200",
        base="datasheet-only",
        tables=_tables("b200_sxm", "vllm", "0.24.0", ("moe", "gemm", *ATTENTION)),
    ),
    ShippedCard(
        name="a100-vllm",
        device="a100-80",
        base="datasheet-only",
        tables=_tables("a100_sxm", "vllm", "0.14.0", ("moe", "gemm", *ATTENTION)),
    ),
    ShippedCard(
        name="rtx-pro-6000-vllm",
        device="rtx-pro-6000",
        base="rtx-pro-6000-launch",
        tables=_tables("rtx_pro_6000_server", "vllm", "0.24.0", ("moe", "gemm", *ATTENTION)),
    ),
)
"""In the order of their bases."""


def kernel_card_for(card: DeviceCard, timings: Timings) -> str:
    """Name of the shipped kernel card of a device whose engine measured a table; else the device's own card."""
    engines = timings.columns.get("framework")
    engine = str(engines[0]).lower() if engines is not None else ""
    for shipped in SHIPPED:
        if shipped.device == card.name and engine and shipped.name.endswith(engine):
            return shipped.name
    return card.kernels


def calibrate_shipped(shipped: ShippedCard, folder: Path) -> Calibration:
    """The card fitted anew on the tables below `folder`. Raises HardwareError where one is missing."""
    device = Device(card=find_device(shipped.device), kernels=find_kernels("ideal"))
    tables = {table.name: read_timings(table.path(folder)) for table in shipped.tables}
    return calibrate(tables, device, shipped.name, base=shipped.base, origin=ORIGIN)


def main(folder: Path | None) -> None:
    """Write every shipped card anew."""
    tables = tables_folder(folder)
    for shipped in SHIPPED:
        path = LIBRARY / f"kernels-{shipped.name}.yaml"
        calibration = calibrate_shipped(shipped, tables)
        write_text(card_yaml(calibration.card), path)
        print(f"{path.name}: {', '.join(f'{s.problem.block} {s.problem.dtype}' for s in calibration.solved)}")
        for text in calibration.unsolved:
            print(f"  not in the card: {text}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
