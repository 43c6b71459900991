"""Suites of validation: which tables judge which cards, what is to be reached, and what is accepted instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hwmodels.calibration.shipped import SHIPPED, ShippedCard
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.validation.goals import Judged, Progress, judged
from hwmodels.validation.host import host
from hwmodels.validation.interpolation import score_interpolation
from hwmodels.validation.links import links
from hwmodels.validation.measured import measured
from hwmodels.validation.score import Score, validate_table
from hwmodels.validation.tables import Table
from hwmodels.validation.timings import read_timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Constants of one card judged on a table of a device that they were not fitted on."""

    constants: str
    device: str
    table: Table


def _transfers() -> Iterator[Transfer]:
    """H200's constants on the tables of other devices, by the engine whose rule of tiles is the same."""
    cards = {shipped.name: shipped for shipped in SHIPPED}
    pairs = (
        ("h200-trtllm", "h100-trtllm"),
        ("h200-vllm", "h100-vllm"),
        ("h200-vllm", "a100-vllm"),
        ("h200-vllm", "b200-vllm"),
        ("h200-trtllm", "rtx-pro-6000-vllm"),
    )
    for constants, own in pairs:
        for table in cards[own].tables:
            yield Transfer(constants=constants, device=cards[own].device, table=table)


def kernels(folder: Path, progress: Progress) -> list[Judged]:
    """Every shipped kernel card on its own tables, by constants refitted without the shape that is judged."""
    return [row for row in _on_own_tables(folder, progress, "kernels") if not _is_skew(row.score)]


def skew(folder: Path, progress: Progress) -> list[Judged]:
    """The same on rows of skewed routing, their tokens per expert replayed; nothing is fitted on such rows."""
    return [row for row in _on_own_tables(folder, progress, "skew") if _is_skew(row.score)]


def transfer(folder: Path, progress: Progress) -> list[Judged]:
    """Constants of the H200 on other devices, of which only the data sheet is used."""
    every = [case for case in _transfers() if case.table.find(folder) is not None]
    rows: list[Judged] = []
    for number, case in enumerate(every):
        progress(case.table.name, number / len(every))
        device = Device(card=find_device(case.device), kernels=find_kernels(case.constants))
        timings = read_timings(case.table.path(folder))
        found = validate_table(timings, device, name=case.table.name, refit=False, part="transfer", main_only=True)
        rows += [judged("transfer", score) for score in found.scores if _is_transferable(score)]
    return rows


def interpolation(folder: Path, progress: Progress) -> list[Judged]:
    """Half the points of every table predicted from the other half, beside what the law says of them."""
    return [judged("interpolation", score) for score in score_interpolation(folder, progress)]


def missing_tables(folder: Path) -> list[str]:
    """Tables of the shipped cards that `folder` does not hold, and that the suites therefore leave out."""
    return [table.name for shipped in SHIPPED for table in shipped.tables if table.find(folder) is None]


SUITES: dict[str, Callable[[Path, Progress], list[Judged]]] = {
    "kernels": kernels,
    "skew": skew,
    "transfer": transfer,
    "interpolation": interpolation,
    "links": links,
    "host": host,
    "measured": measured,
}


def _on_own_tables(folder: Path, progress: Progress, suite: str) -> Iterator[Judged]:
    pairs = [
        (shipped, table)
        for shipped in SHIPPED
        for table in shipped.tables
        if table.find(folder) is not None and (suite == "kernels" or _has_skew(table))
    ]
    for number, (shipped, table) in enumerate(pairs):
        progress(f"{shipped.name}: {table.name}", number / len(pairs))
        for score in _unseen(shipped, table, folder):
            yield judged(suite, score)


@lru_cache(maxsize=256)
def _unseen(shipped: ShippedCard, table: Table, folder: Path) -> tuple[Score, ...]:
    """Scores on shapes left out; kept, because two suites share them."""
    device = Device(card=find_device(shipped.device), kernels=find_kernels(shipped.name))
    found = validate_table(read_timings(table.path(folder)), device, name=table.name, main_only=True)
    return tuple(score for score in found.scores if score.part == "unseen shapes")


def _is_skew(score: Score) -> bool:
    return score.name.endswith("skewed")


def _is_transferable(score: Score) -> bool:
    """Whether both devices ran the same kind of kernel; those for packed weights differ between engines and devices."""
    return not {"mxfp4", "int4", "nvfp4"} & set(score.name.split()) and "EP" not in score.name


def _has_skew(table: Table) -> bool:
    return table.family == "moe"
