"""Points as a Parquet table, where pyarrow is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scenarios.files import whole_file


def write_parquet(rows: Sequence[dict[str, object]], path: Path) -> bool:
    """Whether the table could be written: a column a name, empty where a point lacks it."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return False
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    with whole_file(path) as temporary:
        parquet.write_table(table, temporary)
    return True
