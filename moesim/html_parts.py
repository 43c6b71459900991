"""Tables and sentences of a terminal as HTML for notebooks, so that both say the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rich.table import Table
from rich.text import Text

QUIET = "opacity:0.65"


def html_of(parts: Iterable[Table | Text]) -> str:
    """HTML of tables and sentences; all text is escaped."""
    return "\n".join(_table(part) if isinstance(part, Table) else _sentence(part) for part in parts)


def _sentence(text: Text) -> str:
    style = f' style="{QUIET}"' if text.style == "dim" else ""
    return f"<p{style}>{_escaped(text)}</p>"


def _table(table: Table) -> str:
    sides = ["right" if column.justify == "right" else "left" for column in table.columns]
    heads = _cells("th", sides, [column.header for column in table.columns])
    columns = [list(column.cells) for column in table.columns]
    rows = []
    for number, row in enumerate(table.rows):
        cells = _cells("td", sides, [column[number] for column in columns])
        rows.append(f"<tr{_row_style(str(row.style or ''))}>{cells}</tr>")
    caption = f'<caption style="text-align:left">{_escaped(table.title)}</caption>' if table.title else ""
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cells(tag: str, sides: Sequence[str], shown: Sequence[object]) -> str:
    pairs = zip(sides, shown, strict=True)
    return "".join(f'<{tag} style="text-align:{side}">{_escaped(one)}</{tag}>' for side, one in pairs)


def _row_style(style: str) -> str:
    known = {"bold": "font-weight:bold", "dim": QUIET}.get(style)
    return f' style="{known}"' if known else ""


def _escaped(shown: object) -> str:
    """Text of a cell: of `Text` as it is, of a string without the marks that rich reads in it."""
    text = shown.plain if isinstance(shown, Text) else Text.from_markup(str(shown)).plain
    return escape(text).replace("\n", "<br>")
