"""A result as one HTML page: what its command prints, its figures, and all its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from moesim.html_parts import plain
from sim.page.render import TABLES, render
from sim.report import Picture

if TYPE_CHECKING:
    from sim.figure import Figure

PAGE_DPI = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a page is of: its title, what it asks, the version that made it, and the file beside it."""

    title: str
    question: str
    version: str
    file: str


def result_page(
    about: About,
    parts: Sequence[Table | Text],
    frames: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Mapping[str, Figure],
) -> str:
    """HTML of a result; all text is escaped. `frames` are rows by the name of their table."""
    texts = [part for part in parts if isinstance(part, Text) and part.plain.strip()]
    return render(
        "tables.html",
        TABLES,
        title=about.title,
        question=about.question,
        version=about.version,
        file=about.file,
        sentences=[text.plain for text in texts if text.style != "dim"],
        quiet=[text.plain for text in texts if text.style == "dim"],
        tables=[_table(part) for part in parts if isinstance(part, Table)],
        figures=[_figure(name, figure) for name, figure in figures.items()],
        frames=[(_words(name), _frame(rows)) for name, rows in frames.items() if rows],
    )


def _figure(name: str, figure: Figure) -> dict[str, Any]:
    """A drawn figure, with the share of the page's width that it takes [%]."""
    from sim.figure import WIDTH_IN, png_bytes, svg_bytes

    picture = Picture(name=name, svg=svg_bytes(figure), png=png_bytes(figure, PAGE_DPI))
    width = min(100, round(100 * figure.get_figwidth() / WIDTH_IN))
    return {"title": _words(name), "caption": "", "source": picture.data_uri(), "width": width}


def _words(name: str) -> str:
    return name.replace("-", " ").replace("_", " ").capitalize()


def _table(table: Table) -> dict[str, Any]:
    columns = [[plain(cell) for cell in column.cells] for column in table.columns]
    heads = [plain(column.header) for column in table.columns]
    return {
        "title": plain(table.title) if table.title else f"Table of {', '.join(heads)}",
        "heads": heads,
        "numeric": [column.justify == "right" for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
    }


def _frame(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table of rows that may lack some values; numbers have six digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [[row.get(name) for row in rows] for name in names]
    return {
        "heads": names,
        "numeric": [any(map(_is_number, column)) for column in columns],
        "rows": [[_shown(row.get(name)) for name in names] for row in rows],
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
