"""The result of `place`: one plan, measured, judged, explained, and written for an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.comparing import ComparisonResult
from moesim.shown import Part, Rows, Shown, as_parts, quiet_lines
from placement.formats import export_plan
from scenarios.files import write_text
from sim import outputs, tables
from sim.place import Measure, Placed
from sim.place_text import budget_parts, explanation_parts, judgement_table, measures_table
from sim.result import RunResult, Table

if TYPE_CHECKING:
    from sim.figure import Figure

OWN_FILE = "plan.json"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PlacementResult(Shown):
    """A plan and what is known of it: `objective`, `bound`, `gap`, `best` (the plan, simulated); `export` it."""

    placed: Placed

    @property
    def best(self) -> RunResult:
        """The plan, simulated on held-out requests."""
        return self.placed.row

    @property
    def measure(self) -> Measure:
        """The objective that the solver minimised; the load, where the plan was read from a file."""
        return self.placed.measures[0]

    @property
    def objective(self) -> float:
        """Value of `measure`, in its unit."""
        return self.measure.value

    @property
    def bound(self) -> float:
        """What no plan goes below, in the unit of `measure`."""
        return self.measure.bound

    @property
    def gap(self) -> float | None:
        """(objective - bound) / bound; None where the bound says nothing."""
        return self.measure.gap

    def export(self, format: str, file: str | Path) -> None:
        """Write the plan for an engine, in a format of `moesim list formats`.

        Raises MoesimError where there is no such format, or the file cannot be written.
        """
        export_plan(format, self.placed.file, Path(file))

    def as_json(self) -> dict[str, Any]:
        """The result file of `place`."""
        return self.placed.as_json()

    def save(self, folder: str | Path) -> list[Path]:
        """Write report.html, result.json, plan.json, the timeline and the plots of the plan and its baseline."""
        placed, own = self.placed, Path(folder) / OWN_FILE
        drawn = {placed.comparison.tables[0].first, placed.plan}
        written = outputs.write_outputs(placed.comparison, Path(folder), drawn)
        self.export("moesim", own)
        write_text(self.json_text(), Path(folder) / "result.json")
        return [*written, own]

    def parts(self) -> Iterator[Part]:
        """Objectives, budgets, judgement, the ranking, what was explained, notes."""
        placed = self.placed
        yield measures_table(placed)
        yield from as_parts(budget_parts(placed))
        yield judgement_table(placed)
        yield tables.comparison_table(self._table)
        yield from as_parts(explanation_parts(placed))
        yield from quiet_lines(self._table.notes)

    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """`objectives` with bounds and gaps; `judgement` by part of the requests; `plans`: the ranking."""
        placed = self.placed
        return {
            "objectives": lambda: [asdict(measure) | {"gap": measure.gap} for measure in placed.measures],
            "judgement": lambda: [asdict(part) for part in placed.judgement.parts],
            "plans": ComparisonResult(placed.comparison).frames()["plans"],
        }

    def drawings(self) -> dict[str, Callable[[], Figure]]:
        """The figures of the report."""
        drawn = self._table.only({self._table.first, self.placed.plan})
        return {name: partial(draw, drawn) for name, draw in outputs.drawings(drawn).items()}

    @property
    def _table(self) -> Table:
        return self.placed.comparison.tables[0]
