"""Suites of validation: which tables judge which cards, what is to be reached, and what is accepted instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hwmodels.calibration.shipped import SHIPPED, ShippedCard
from hwmodels.devices import Device
from hwmodels.library import find_device, find_kernels
from hwmodels.validation.goals import Verdict, verdict
from hwmodels.validation.interpolation import score_interpolation
from hwmodels.validation.score import Part, Score, validate_table
from hwmodels.validation.tables import Table
from hwmodels.validation.timings import read_timings

Progress = Callable[[str, float], None]
"""Called with what is being judged and the share that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One row of a suite: a score, and what it is held to."""

    suite: str
    score: Score
    verdict: Verdict


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
    for constants, judged in pairs:
        for table in cards[judged].tables:
            yield Transfer(constants=constants, device=cards[judged].device, table=table)


def kernels(folder: Path, progress: Progress) -> list[Judged]:
    """Every shipped kernel card on its own tables, by constants refitted without the shape that is judged."""
    return [judged for judged in _on_own_tables(folder, progress, "kernels") if not _is_skew(judged.score)]


def skew(folder: Path, progress: Progress) -> list[Judged]:
    """The same on rows of skewed routing, their tokens per expert replayed; nothing is fitted on such rows."""
    return [judged for judged in _on_own_tables(folder, progress, "skew") if _is_skew(judged.score)]


def transfer(folder: Path, progress: Progress) -> list[Judged]:
    """Constants of the H200 on other devices, of which only the data sheet is used."""
    every = list(_transfers())
    rows: list[Judged] = []
    for number, case in enumerate(every):
        progress(case.table.name, number / len(every))
        device = Device(card=find_device(case.device), kernels=find_kernels(case.constants))
        timings = read_timings(case.table.path(folder))
        found = validate_table(timings, device, name=case.table.name, refit=False, part="transfer", main_only=True)
        rows += [_judged("transfer", score) for score in found.scores if _is_transferable(score)]
    return rows


def interpolation(folder: Path, progress: Progress) -> list[Judged]:
    """Half the points of every table predicted from the other half, beside what the law says of them."""
    return [_judged("interpolation", score) for score in score_interpolation(folder, progress)]


SUITES: dict[str, Callable[[Path, Progress], list[Judged]]] = {
    "kernels": kernels,
    "skew": skew,
    "transfer": transfer,
    "interpolation": interpolation,
}


def _on_own_tables(folder: Path, progress: Progress, suite: str) -> Iterator[Judged]:
    pairs = [
        (shipped, table) for shipped in SHIPPED for table in shipped.tables if suite == "kernels" or _has_skew(table)
    ]
    for number, (shipped, table) in enumerate(pairs):
        progress(f"{shipped.name}: {table.name}", number / len(pairs))
        for score in _unseen(shipped, table, folder):
            yield _judged(suite, score)


def _unseen(shipped: ShippedCard, table: Table, folder: Path) -> list[Score]:
    device = Device(card=find_device(shipped.device), kernels=find_kernels(shipped.name))
    part: Part = "unseen shapes"
    found = validate_table(read_timings(table.path(folder)), device, name=table.name, main_only=True)
    return [score for score in found.scores if score.part == part]


def _judged(suite: str, score: Score) -> Judged:
    return Judged(suite=suite, score=score, verdict=verdict(suite, score))


def _is_skew(score: Score) -> bool:
    return score.name.endswith("skewed")


def _is_transferable(score: Score) -> bool:
    """Whether both devices ran the same kind of kernel; those for packed weights differ between engines and devices."""
    return not {"mxfp4", "int4", "nvfp4"} & set(score.name.split()) and "EP" not in score.name


def _has_skew(table: Table) -> bool:
    return table.family == "moe"
