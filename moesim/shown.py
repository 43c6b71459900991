"""What every result can do: show itself in a terminal and a notebook, become a table, draw its figures, be saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from moesim.html_parts import html_of
from scenarios.errors import MoesimError
from scenarios.explain import did_you_mean
from sim.outputs import json_of
from sim.tables import plain_text

if TYPE_CHECKING:
    import pandas as pd

    from sim.figure import Figure

Part = Table | Text
"""A table or a sentence of what a result shows."""
Rows = list[dict[str, Any]]
Named = TypeVar("Named")

REPR_WIDTH = 100


class Shown(ABC):
    """Base of all results. Behaviour alone: a subclass holds the value, and says what there is to show of it."""

    __slots__ = ()

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """The result file of the command, as plain values."""

    @abstractmethod
    def save(self, folder: str | Path) -> list[Path]:
        """Write what `--out` writes to a folder; paths of the files.

        Raises MoesimError where the folder cannot be written.
        """

    @abstractmethod
    def parts(self) -> Iterable[Part]:
        """The tables and sentences that the command prints, in order."""

    @abstractmethod
    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """The tables of `to_dataframe` by name, the main one first."""

    @abstractmethod
    def drawings(self) -> Mapping[str, Callable[[], Figure | None]]:
        """The figures of `plot` by name, the main one first; None where one has nothing to show."""

    def json_text(self) -> str:
        """The result file of the command, letter by letter."""
        return json_of(self.as_json())

    def to_dataframe(self, name: str | None = None) -> pd.DataFrame:
        """The main table as a pandas DataFrame, or the one of that name.

        Raises MoesimError where there is none of that name, or pandas is missing.
        """
        rows = _chosen(self.frames(), name, "table")
        try:
            import pandas as pd
        except ImportError:
            raise MoesimError("to_dataframe needs pandas: pip install 'moesim[notebook]'") from None
        return pd.DataFrame(rows())

    @property
    def figures(self) -> dict[str, Figure]:
        """Every figure that has something to show, drawn, by name."""
        return {name: figure for name, draw in self.drawings().items() if (figure := draw()) is not None}

    def plot(self, name: str | None = None) -> Figure:
        """The main figure, or the one of that name.

        Raises MoesimError where there is none of that name, or it has nothing to show.
        """
        figure = _chosen(self.drawings(), name, "figure")()
        if figure is None:
            shown = ", ".join(self.figures) or "none"
            raise MoesimError(f"figure '{name}' has nothing to show of this result; figures that have: {shown}")
        return figure

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Part]:
        yield from self.parts()

    def __repr__(self) -> str:
        return plain_text(self, REPR_WIDTH).rstrip()

    def _repr_html_(self) -> str:
        return html_of(self.parts())


def _chosen(options: Mapping[str, Named], name: str | None, kind: str) -> Named:
    """The option of that name, or the first. Raises MoesimError where there is none."""
    if not options:
        raise MoesimError(f"this result has no {kind}s")
    wanted = next(iter(options)) if name is None else name
    if wanted not in options:
        hint = did_you_mean(wanted, options)
        raise MoesimError(f"no {kind} '{wanted}'{hint}; this result has {', '.join(options)}")
    return options[wanted]


def quiet_lines(lines: Iterable[str]) -> Iterator[Text]:
    """Notes below a table, less bright than the rest."""
    return (Text(line, style="dim") for line in lines)


def as_parts(parts: Iterable[Table | str]) -> Iterator[Part]:
    """Tables, and plain sentences as text whose brackets mean nothing."""
    return (Text(part) if isinstance(part, str) else part for part in parts)
