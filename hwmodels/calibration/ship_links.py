"""Writes the shipped cards of collectives, exchanges and copies anew from the public tables they were fitted to.

    python -m hwmodels.calibration.ship_links [TABLES]

TABLES is a folder of aiconfigurator-core 0.12.0's tables by system; default: the installed package.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from hwmodels.calibration.links import calibrate_links, cards_yaml
from hwmodels.cards import CardSet
from hwmodels.library import LIBRARY
from hwmodels.validation.tables import ORIGIN, Figures, Table, tables_folder
from scenarios.errors import HardwareError
from scenarios.files import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTable:
    """A table of communication timings; the cards of these links come from it, of no link where it only judges."""

    table: Table | Figures
    links: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """How a block names the table."""
        if isinstance(self.table, Figures):
            return COPY_FIGURES
        return f"fitted on {self.table.name} of {ORIGIN}"


def _table(system: str, engine: str, version: str, table: str) -> Table:
    return Table(system=system, family="comm", engine=engine, version=version, table=table)


COPY_FIGURES = (
    "fitted on figures 3 and 4 of the vLLM blog on its KV offloading connector (2026-01-08): H100, pinned memory"
)
NVLINK = ("nvlink-4",)
NETWORK = ("ndr-ib",)
SHIPPED = (
    LinkTable(table=_table("a100_sxm", "nccl", "2.27.3", "nccl"), links=("nvlink-3",)),
    LinkTable(table=_table("h200_sxm", "nccl", "2.26.2", "nccl"), links=NVLINK),
    LinkTable(table=_table("b200_sxm", "nccl", "2.29.2", "nccl"), links=("nvlink-5",)),
    LinkTable(table=_table("rtx_pro_6000_server", "nccl", "2.29.2", "nccl"), links=("pcie-5-peer",)),
    LinkTable(table=_table("h200_sxm", "vllm", "0.24.0", "custom_allreduce"), links=NVLINK),
    LinkTable(table=_table("h200_sxm", "sglang", "0.5.14", "custom_allreduce"), links=NVLINK),
    LinkTable(table=_table("h200_sxm", "trtllm", "1.3.0rc20", "custom_allreduce"), links=NVLINK),
    LinkTable(table=_table("h200_sxm", "sglang", "0.5.12", "wideep_deepep_ll"), links=NVLINK),
    LinkTable(table=_table("h200_sxm", "sglang", "0.5.12", "wideep_deepep_normal"), links=NVLINK),
    # Of several nodes; published alike for H100 and H200.
    LinkTable(table=_table("h200_sxm", "sglang", "0.5.6.post2", "wideep_deepep_ll"), links=NETWORK),
    LinkTable(table=_table("h200_sxm", "sglang", "0.5.6.post2", "wideep_deepep_normal"), links=NETWORK),
    LinkTable(table=_table("gb200", "trtllm", "1.3.0rc10", "trtllm_alltoall"), links=("nvlink-5-nvl72",)),
    LinkTable(table=Figures(file="offload/pcie_nvlink/h100_pcie_h2d_d2h_vs_block.csv"), links=("pcie-5",)),
)
JUDGED_ONLY = (
    LinkTable(table=_table("h100_sxm", "nccl", "2.27.3", "nccl")),
    LinkTable(table=_table("h200_sxm", "vllm", "0.24.0", "moe_a2a")),
)
"""Tables of links whose cards come from another one: the cards are judged on them."""


def ship_links(tables: Path, folder: Path = LIBRARY) -> tuple[Path, ...]:
    """Fit the shipped tables below `tables` and write one file a kind of card into `folder`; returns the files.

    Raises HardwareError where a table is missing; a kind none of whose tables is there keeps its file.
    """
    found = [(shipped, shipped.table.find(tables)) for shipped in SHIPPED]
    absent = [shipped.table.name for shipped, path in found if path is None and isinstance(shipped.table, Table)]
    if absent:
        raise HardwareError(f"{tables}: holds no table {', '.join(absent)}")
    fitted = [calibrate_links(path, shipped.source, shipped.links) for shipped, path in found if path is not None]
    written = []
    for kind in ("collectives", "exchanges", "copies"):
        cards = CardSet.model_validate({kind: [card for one in fitted for card in getattr(one, kind)]})
        if not getattr(cards, kind):
            continue
        path = folder / f"{kind}.yaml"
        head = f"# Written by `python -m hwmodels.calibration.ship_links TABLES`; the laws are in {LAWS[kind]}.\n"
        write_text(head + cards_yaml(cards), path)
        written.append(path)
    return tuple(written)


LAWS = {
    "collectives": "hwmodels/collectives.py",
    "exchanges": "hwmodels/expert_exchange.py",
    "copies": "hwmodels/copies.py",
}


if __name__ == "__main__":
    for file in ship_links(tables_folder(Path(sys.argv[1]) if len(sys.argv) > 1 else None)):
        print(file)
