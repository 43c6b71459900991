"""Facts of traces in tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text


def facts_table(facts: Mapping[str, Any]) -> Table:
    """One row a fact; of lists by layer mean, least and most."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column()
    for name, value in facts.items():
        table.add_row(Text(name), Text("\n".join(map(str, value)) if name == "checks" else _short(value)))
    return table


def columns_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """Facts of several traces, a column each."""
    table = Table("", *columns, box=None, pad_edge=False)
    for name in dict.fromkeys(name for facts in columns.values() for name in facts):
        table.add_row(Text(name), *(Text(_short(facts.get(name, "-"))) for facts in columns.values()))
    return table


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], float):
        mean = sum(value) / len(value)
        return f"mean {mean:.3f}   min {min(value):.3f}   max {max(value):.3f}   [{len(value)}]"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
