"""All families of kernels of one device, measured one after another into a folder of tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from scenarios.errors import MoesimError
from scenarios.files import write_text
from traces.capture.kernels import attention, copies, dense, experts, hosts, sharing, small
from traces.capture.kernels.bench import Bench, Case
from traces.capture.kernels.grid import Grid
from traces.capture.kernels.passes import joined, key_of, n_passes, read_rows, table_text

SAVE_EVERY_S = 20.0  # a table is written anew this often, so that a run that is cut off leaves what it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What became of a family: rows in its table, of which some were disturbed, and whether all points were reached.

    failed  points that raised an error, with it; the others go on.
    """

    family: str
    rows: int
    disturbed: int
    complete: bool
    failed: tuple[str, ...] = ()


def measure_families(
    bench: Bench, grid: Grid, names: Sequence[str], folder: Path, limits: tuple[float, int]
) -> list[Measured]:
    """Measure the families of these names into `folder`/<name>.csv, in equal shares of the time that is left.

    limits  seconds for all, and passes: how many times a point is measured, what earlier runs did included.
    Raises MoesimError for an unknown name.
    """
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown:
        raise MoesimError(f"there is no family {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    seconds, passes = limits
    until, found = time.monotonic() + seconds, []
    for place, name in enumerate(names):
        own_until = time.monotonic() + (until - time.monotonic()) / (len(names) - place)
        make = partial(FAMILIES[name], bench, grid)
        found.append(_measure(name, make, folder / f"{name}.csv", (own_until, passes)))
    return found


def _measure(name: str, make: Callable[[], Iterator[Case]], path: Path, limits: tuple[float, int]) -> Measured:
    """One family, pass after pass; what earlier runs left in the table counts, save what was disturbed."""
    until, passes = limits
    rows, saved, complete, failed = read_rows(path), time.monotonic(), True, list[str]()
    for wanted in range(1, passes + 1):
        for case in make():
            key = key_of(case.shape)
            if n_passes(rows.get(key)) >= wanted:
                continue
            if time.monotonic() >= until:
                complete = False
                break
            try:
                rows[key] = joined(rows.get(key), case.shape | case.measure())
            except Exception as error:  # a kernel that a device lacks, or no memory, surfaces as any type
                failed.append(f"{case.shape}: {type(error).__name__}: {str(error).splitlines()[:1]}")
            if time.monotonic() - saved > SAVE_EVERY_S:
                write_text(table_text(rows), path)
                saved = time.monotonic()
    if rows:
        write_text(table_text(rows), path)
    disturbed = sum(n_passes(row) == 0 for row in rows.values())
    return Measured(family=name, rows=len(rows), disturbed=disturbed, complete=complete, failed=tuple(failed))


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
    yield from sharing.cases(bench, grid.layers[0], list(sharing.WORKS), sharing.neighbours_of(bench.device))


def _host(bench: Bench, grid: Grid) -> Iterator[Case]:
    yield from hosts.cases(bench, grid.layers[:6])


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
