"""The result of `reproduce`: published results against predictions, one row a claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.shown import Part, Rows, Shown, as_parts
from sim.outputs import write_named
from sim.reproduce.claims import Reproduction, Row, as_json, missed
from sim.reproduce.tables import claims_table, constants_table, summary, systems_table

if TYPE_CHECKING:
    from sim.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ReproductionResult(Shown):
    """Claims of papers with their predictions: `rows`, and whether all hold the `limit` or say why not (`ok`)."""

    papers: tuple[Reproduction, ...]
    limit: float

    @property
    def rows(self) -> list[Row]:
        """Every claim of every paper."""
        return [row for paper in self.papers for row in paper.rows]

    @property
    def ok(self) -> bool:
        """Whether every claim is within the limit, or has a stated reason."""
        return not missed(self.rows, self.limit)

    def as_json(self) -> dict[str, Any]:
        """The result file of `reproduce`."""
        return as_json(self.papers)

    def save(self, folder: str | Path) -> list[Path]:
        """Write reproductions.json and reproductions.png."""
        return write_named(Path(folder), ("reproductions.json", self.json_text()), self.figures)

    def parts(self) -> Iterator[Part]:
        """Claims, constants, a line a system, and what it amounts to."""
        for table in (
            claims_table(self.rows),
            constants_table(self.papers),
            systems_table(self.papers, self.limit),
        ):
            yield table
            yield from as_parts([""])
        yield from as_parts(summary(self.rows, self.limit))

    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """`claims`: published, predicted, error."""
        return {"claims": lambda: list(self.as_json()["claims"])}

    def drawings(self) -> dict[str, Callable[[], Figure]]:
        """`reproductions`: predicted against published numbers, and errors by system."""
        from sim.reproduce.plots import reproductions_figure

        return {"reproductions": partial(reproductions_figure, self.papers, self.limit)}
