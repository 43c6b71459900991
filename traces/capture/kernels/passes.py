"""Rows of tables over several passes: a point is measured again at another time, since machines drift."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from traces.capture.kernels.bench import Row

Key = tuple[tuple[str, str], ...]
QUANTITIES = (("latency", "p10", "p90"), ("factor", "factor_p10", "factor_p90"))
"""Column of the median, and those of its quantiles: of times [ms], and of slowdowns."""
RESULTS = {"repeats", "disturbed", "passes", "alone", "together", *(name for names in QUANTITIES for name in names)}
"""Columns that are measured; the others say what a row is of."""


def key_of(row: Row) -> Key:
    """What a row is of, without its times."""
    return tuple((name, str(value)) for name, value in row.items() if name not in RESULTS)


def n_passes(row: Row | None) -> int:
    """Passes in which a point was measured without disturbance."""
    if row is None or str(row.get("disturbed", 0)) == "1":
        return 0
    return len(str(row["passes"]).split())


def joined(before: Row | None, fresh: Row) -> Row:
    """The row after one more pass: the median of the passes' medians, and the outermost of their quantiles.

    `passes` lists the medians. A disturbed pass counts only as long as there is no other.
    """
    median, low, high = next(names for names in QUANTITIES if names[0] in fresh)
    if before is None or not n_passes(before):
        return fresh | {"passes": str(fresh[median])}
    if not n_passes(fresh | {"passes": "1"}):
        return before
    passes = [*str(before["passes"]).split(), str(fresh[median])]
    return before | {
        "passes": " ".join(passes),
        median: f"{np.median([float(one) for one in passes]):.6g}",
        low: str(min(before[low], fresh[low], key=lambda text: float(str(text)))),
        high: str(max(before[high], fresh[high], key=lambda text: float(str(text)))),
        "repeats": int(str(before["repeats"])) + int(str(fresh["repeats"])),
    }


def read_rows(path: Path) -> dict[Key, Row]:
    """Rows of a table that is there already, by what they are of; none where it is not."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows: list[Row] = [dict(row) for row in csv.DictReader(stream)]
    return {key_of(row): row for row in rows}


def table_text(rows: Mapping[Key, Row]) -> str:
    """The rows as CSV; all have the same columns."""
    listed = list(rows.values())
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(listed[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return stream.getvalue()
