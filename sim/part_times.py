"""Times of the parts of a pass on a device, read from the table that `moesim capture runs` measures beside the runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import CalibrationError

Line = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Ascending sizes and the times [s] that belong to them."""
Found = TypeVar("Found")
LINES = ("embed", "gate", "sort", "expert", "combine", "shared", "add", "head")
FILES = ("runs-parts.csv", "runs-neighbours.csv")
FIXED = ("side copy", "side expert", "hand-over")
ATTENTION = ("equal", "ragged", "gathered", "prompt", "prompt gathered")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTimes:
    """Parts of the passes of one model.

    lines      part -> times by size: tokens of the pass (of the expert), of the head: requests.
    attention  variant -> requests -> times of a layer by longest context (of prompts: by tokens).
    fixed      part -> time.
    slowdowns  (part, neighbour) -> median ratio of its times beside the neighbour ("copy", "expert", "pass") and alone.
    """

    lines: Mapping[str, Line]
    attention: Mapping[str, Mapping[int, Line]]
    fixed: Mapping[str, float]
    slowdowns: Mapping[tuple[str, str], float]

    def line_s(self, part: str, size: float) -> float:
        """Time of a part [s]: straight lines between the measured sizes, the last one prolonged."""
        return interpolated(self._find(self.lines, part), size)

    def attention_s(self, variant: str, requests: int, longest: int) -> float:
        """Time of a layer's attention [s], linear in context and in requests between measured sizes."""
        table = self._find(self.attention, variant)
        if len(table) == 1 and requests not in table:
            raise CalibrationError(f"attention {variant} was measured for {list(table)} requests, not for {requests}")
        sizes = np.array(sorted(table), np.float64)
        times_s = np.array([interpolated(table[int(size)], longest) for size in sizes])
        return times_s[0] if len(sizes) == 1 else interpolated((sizes, times_s), requests)

    def fixed_s(self, part: str) -> float:
        """Time of a part that has no size [s]."""
        return self._find(self.fixed, part)

    def host_expert_s(self, tokens: int) -> float:
        """Time of one expert on the host [s], which is a core like the device."""
        return self.line_s("expert", tokens)

    def slowdown(self, part: str, neighbour: str) -> float:
        """Factor of a part's time beside a neighbour; 1 where none was found."""
        return max(self.slowdowns.get((part, neighbour), 1.0), 1.0)

    @staticmethod
    def _find(table: Mapping[str, Found], part: str) -> Found:
        if part not in table:
            raise CalibrationError(f"the table has no {part}; it has {', '.join(table)}: measure it with capture runs")
        return table[part]


def interpolated(line: Line, size: float) -> float:
    """Time at a size [s]; never below zero."""
    sizes, times_s = line
    if len(sizes) == 1:
        return float(times_s[0])
    place = int(np.clip(np.searchsorted(sizes, size), 1, len(sizes) - 1))
    low, high = sizes[place - 1], sizes[place]
    share = (size - low) / (high - low)
    return max(float(times_s[place - 1] + share * (times_s[place] - times_s[place - 1])), 0.0)


def read_parts(folder: Path, quantile: str = "median_s") -> dict[str, PartTimes]:
    """Tables of a folder by model; `quantile` names the column. Raises CalibrationError where a file is no table."""
    path, rows = folder, list[dict[str, str]]()
    try:
        for path in (folder / name for name in FILES):
            with path.open(newline="", encoding="utf-8") as file:
                rows += csv.DictReader(file)
        models = dict.fromkeys(row["model"] for row in rows)
        return {model: _parts([row for row in rows if row["model"] == model], quantile) for model in models}
    except (OSError, KeyError, ValueError) as error:
        raise CalibrationError(f"{path}: not a table of parts ({error}); write it with `moesim capture runs`") from None


def _parts(rows: Iterable[Mapping[str, str]], quantile: str) -> PartTimes:
    alone: dict[str, dict[float, float]] = {}
    attention: dict[str, dict[int, dict[float, float]]] = {}
    fixed: dict[str, float] = {}
    beside: dict[tuple[str, str], dict[tuple[str, ...], float]] = {}
    for row in rows:
        part, time_s = row["part"], float(row[quantile])
        if row["beside"]:
            key = (row["requests"], row["tokens"], row["longest"])
            beside.setdefault((part, row["beside"]), {})[key] = float(row["median_s"])
        elif part in LINES:
            alone.setdefault(part, {})[float(row["requests"] if part == "head" else row["tokens"])] = time_s
        elif part in ATTENTION:
            size = float(row["tokens"] if part.startswith("prompt") else row["longest"])
            attention.setdefault(part, {}).setdefault(int(row["requests"]), {})[size] = time_s
        if part in FIXED and row["beside"] in ("", "nothing"):
            fixed[part] = time_s
    return PartTimes(
        lines={part: _line(times) for part, times in alone.items()},
        attention={name: {n: _line(times) for n, times in sorted(one.items())} for name, one in attention.items()},
        fixed=fixed,
        slowdowns=_slowdowns(beside),
    )


def _line(times_s: Mapping[float, float]) -> Line:
    sizes = sorted(times_s)
    return np.array(sizes), np.array([times_s[size] for size in sizes])


def _slowdowns(beside: Mapping[tuple[str, str], Mapping[tuple[str, ...], float]]) -> dict[tuple[str, str], float]:
    found = {}
    for (part, neighbour), times_s in beside.items():
        base = beside.get((part, "nothing"), {})
        ratios = [time_s / base[key] for key, time_s in times_s.items() if key in base]
        if neighbour != "nothing" and ratios:
            found[part, neighbour] = float(np.median(ratios))
    return found
