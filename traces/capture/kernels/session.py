"""All families of kernels of one device, measured one after another into a folder of tables."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from scenarios.errors import MoesimError
from scenarios.files import write_text
from traces.capture.kernels import attention, copies, dense, experts, hosts, sharing, small
from traces.capture.kernels.bench import Bench, Case, Row
from traces.capture.kernels.grid import Grid

RESULTS = {"latency", "p10", "p90", "repeats", "disturbed", "alone", "together", "factor", "factor_p10", "factor_p90"}
"""Columns that are measured; the others say what a row is of."""
SAVE_EVERY_S = 20.0  # a table is written anew this often, so that a run that is cut off leaves what it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What became of a family: rows in its table, of which some were disturbed, and whether all points were reached."""

    family: str
    rows: int
    disturbed: int
    complete: bool


def measure_families(bench: Bench, grid: Grid, names: Sequence[str], folder: Path, seconds: float) -> list[Measured]:
    """Measure the families of these names into `folder`/<name>.csv, in equal shares of the time that is left.

    Raises MoesimError for an unknown name.
    """
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown:
        raise MoesimError(f"there is no family {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    until, found = time.monotonic() + seconds, []
    for place, name in enumerate(names):
        share_s = (until - time.monotonic()) / (len(names) - place)
        found.append(_measure(name, FAMILIES[name](bench, grid), folder / f"{name}.csv", time.monotonic() + share_s))
    return found


def _measure(name: str, cases: Iterable[Case], path: Path, until: float) -> Measured:
    """One family. Points that an earlier run left in the table stay, unless other programs disturbed them."""
    before = {_key(row): row for row in read_rows(path)}
    rows: list[Row] = []
    saved, complete = time.monotonic(), True
    for case in cases:
        known = before.get(_key(case.shape))
        late = time.monotonic() >= until
        if known is None and late:
            complete = False
            break
        if known is None or not (late or known.get("disturbed") in (None, "0")):
            rows.append(case.shape | case.measure())
        else:
            rows.append(known)
        if time.monotonic() - saved > SAVE_EVERY_S:
            write_text(table_text(rows + _rest(before, rows)), path)
            saved = time.monotonic()
    rows += _rest(before, rows) if not complete else []
    if rows:
        write_text(table_text(rows), path)
    disturbed = sum(str(row.get("disturbed")) == "1" for row in rows)
    return Measured(family=name, rows=len(rows), disturbed=disturbed, complete=complete)


def read_rows(path: Path) -> list[Row]:
    """Rows of a table that is there already; none where it is not."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _key(row: Row) -> tuple[tuple[str, str], ...]:
    """What a row is of, without its times."""
    return tuple((name, str(value)) for name, value in row.items() if name not in RESULTS)


def _rest(before: Mapping[tuple[tuple[str, str], ...], Row], rows: Sequence[Row]) -> list[Row]:
    """Earlier rows that have not come up yet."""
    seen = {_key(row) for row in rows}
    return [row for key, row in before.items() if key not in seen]


def table_text(rows: Sequence[Row]) -> str:
    """The rows as CSV; all have the same columns."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _gemm(bench: Bench, grid: Grid) -> Iterator[Case]:
    yield from dense.cases(bench, list(grid.products), list(grid.product_tokens), list(grid.dtypes))
    yield from dense.repeated_cases(bench, list(grid.products[:4]), (1, 8, 64), grid.dtypes[0])


def _moe(bench: Bench, grid: Grid) -> Iterator[Case]:
    first, others = grid.backends[:1], grid.backends[1:]
    for dtype in grid.dtypes:
        yield from experts.cases(bench, grid.layers, grid.expert_tokens, first, dtype)
        yield from experts.cases(bench, grid.layers[:1], grid.expert_tokens, others, dtype)
        yield from experts.repeated_cases(bench, grid.layers[0], (1, 8, 64), (grid.backends[0], dtype))


def _attention(bench: Bench, grid: Grid) -> Iterator[Case]:
    for dtype in grid.dtypes:
        yield from chain(
            attention.cases(bench, grid.heads[:1], grid.calls, dtype),
            attention.cases(bench, grid.heads[1:], grid.other_calls, dtype),
        )


def _small(bench: Bench, grid: Grid) -> Iterator[Case]:
    for dtype in grid.dtypes:
        yield from small.cases(bench, grid.layers[::2], grid.small_tokens, dtype)


def _copies(bench: Bench, grid: Grid) -> Iterator[Case]:
    yield from copies.cases(bench, copies.copies_of(bench.device, grid.copy_bytes))


def _sharing(bench: Bench, grid: Grid) -> Iterator[Case]:
    names = list(sharing.WORKS)
    yield from sharing.cases(bench, grid.layers[0], names, names)


def _host(bench: Bench, grid: Grid) -> Iterator[Case]:
    yield from hosts.cases(bench, grid.layers[:2])


FAMILIES: dict[str, Callable[[Bench, Grid], Iterator[Case]]] = {
    "gemm": _gemm,
    "moe": _moe,
    "attention": _attention,
    "small": _small,
    "copies": _copies,
    "sharing": _sharing,
    "host": _host,
}
"""Name of a table -> its points."""
