"""A result as one HTML page: what its command prints, its figures, and all its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    parts: Iterable[Table | Text],
    frames: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Mapping[str, Figure],
) -> str:
    """HTML of a result; all text is escaped. `frames` are rows by the name of their table."""
    from sim.figure import png_bytes, svg_bytes

    drawn = [Picture(name=name, svg=svg_bytes(fig), png=png_bytes(fig, PAGE_DPI)) for name, fig in figures.items()]
    return render(
        "tables.html",
        TABLES,
        title=about.title,
        question=about.question,
        version=about.version,
        file=about.file,
        blocks=[_block(part) for part in parts if not isinstance(part, Text) or part.plain.strip()],
        figures=[{"title": _words(p.name), "caption": "", "source": p.data_uri()} for p in drawn],
        frames=[(_words(name), _frame(rows)) for name, rows in frames.items() if rows],
    )


def _words(name: str) -> str:
    return name.replace("-", " ").replace("_", " ").capitalize()


def _block(part: Table | Text) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.plain, "quiet": part.style == "dim"}
    columns = [[plain(cell) for cell in column.cells] for column in part.columns]
    return {
        "title": plain(part.title) if part.title else "",
        "heads": [plain(column.header) for column in part.columns],
        "numeric": [column.justify == "right" for column in part.columns],
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
