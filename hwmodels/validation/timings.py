"""Tables of measured kernel timings: one row a shape, in the columns of aiconfigurator's tables."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.validation.columns import Column, positive, sizes, whole_numbers, words
from scenarios.errors import HardwareError
from scenarios.reading import regular, text_lines

MAX_ROWS = 1_000_000
MAX_TEXT_BYTES = 1 << 28  # of a CSV file, inflated
NOT_STATED = "not stated"  # source of kernels of tables without `kernel_source`

FAMILIES: dict[str, tuple[str, ...]] = {
    "moe": ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
            "distribution"),
    "attention": ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype"),
    "mla": ("mla_dtype", "kv_cache_dtype", "num_heads", "batch_size", "isl", "step"),
    "gemm": ("gemm_dtype", "m", "n", "k"),
}  # fmt: skip
"""Columns by which a family of kernels is known; `latency` [ms] and `kernel_source` come on top."""
WORDS = ("dtype", "distribution")
"""Ends of the names of those that hold words; the others hold sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """A table: `columns[name]` is an array over rows; `measured_s` float64[row]; `source` str[row]."""

    path: Path
    family: str
    columns: dict[str, Column]
    measured_s: NDArray[np.float64]
    source: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.measured_s)

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Timings:
        """The table of the chosen rows."""
        return Timings(
            path=self.path,
            family=self.family,
            columns={name: column[chosen] for name, column in self.columns.items()},
            measured_s=self.measured_s[chosen],
            source=self.source[chosen],
        )

    def ints(self, name: str) -> NDArray[np.int64]:
        """A column of whole numbers from 0 on. Raises HardwareError where it holds anything else."""
        return whole_numbers(self.path, name, self.columns[name])

    def texts(self, name: str) -> NDArray[np.str_]:
        """A column of words."""
        return words(self.path, name, self.columns[name])


def read_timings(path: Path) -> Timings:
    """The table of a .parquet, .csv or .csv.gz file; latency is in milliseconds.

    Raises HardwareError where the file is unreadable, lacks columns, or holds a time that is not positive.
    """
    columns = read_columns(path)
    family = next((name for name, needed in FAMILIES.items() if set(needed) <= columns.keys()), None)
    if family is None or "latency" not in columns:
        known = "; ".join(f"{name}: {', '.join(needed)}" for name, needed in FAMILIES.items())
        raise HardwareError(f"{path}: the columns fit no family of kernels; needed are latency [ms] and, of {known}")
    measured_ms = positive(path, "latency", columns["latency"])
    if len(measured_ms) == 0:
        raise HardwareError(f"{path}: the table has no rows")
    for name in FAMILIES[family]:
        if not name.endswith(WORDS):
            sizes(path, name, columns[name])
    source = columns.get("kernel_source", np.full(len(measured_ms), NOT_STATED))
    return Timings(
        path=path,
        family=family,
        columns=columns,
        measured_s=measured_ms * 1e-3,
        source=words(path, "kernel_source", source),
    )


def read_columns(path: Path) -> dict[str, Column]:
    """The columns of a .parquet, .csv or .csv.gz file by name; cells of a CSV file are text.

    Raises HardwareError where the file is missing, unreadable, or of another kind.
    """
    reader = next((read for suffix, read in _READERS.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise HardwareError(f"{path}: a table of timings is one of {', '.join(_READERS)}")
    try:
        regular(path)
    except OSError as error:
        raise HardwareError(f"{path}: no such table of timings ({error.strerror})") from None
    return reader(path)


def _read_parquet(path: Path) -> dict[str, Column]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise HardwareError(f"{path}: parquet needs pyarrow; pip install 'moesim[tables]', or convert to CSV") from None
    try:
        _check_rows(path, parquet.read_metadata(path).num_rows)
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise HardwareError(f"{path}: not a readable parquet file ({error})") from None
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def _read_csv(path: Path) -> dict[str, Column]:
    try:
        rows = csv.reader(text_lines(path, MAX_TEXT_BYTES))
        header = next(rows, [])
        cells = [row for row in islice(rows, MAX_ROWS + 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HardwareError(f"{path}: not a readable CSV file ({error})") from None
    _check_rows(path, len(cells))
    ragged = next((number for number, row in enumerate(cells, 2) if len(row) != len(header)), None)
    if ragged is not None:
        raise HardwareError(f"{path}:{ragged} has another number of cells than the {len(header)} of the header")
    return {name: np.array([row[place] for row in cells]) for place, name in enumerate(header)}


def _check_rows(path: Path, n_rows: int) -> None:
    if n_rows > MAX_ROWS:
        raise HardwareError(f"{path}: more than {MAX_ROWS:,} rows; split the table")


_READERS: dict[str, Callable[[Path], dict[str, Column]]] = {
    ".parquet": _read_parquet,
    ".csv.gz": _read_csv,
    ".csv": _read_csv,
}
