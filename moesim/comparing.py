"""The result of `run`, `compare` and `serve`: plans, ranked, one table a workload."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.shown import Part, Rows, Shown, quiet_lines
from scenarios.errors import MoesimError
from sim import outputs, tables
from sim.result import Comparison, RunResult, Table
from sim.serving.measures import e2e_s, ttft_s

if TYPE_CHECKING:
    from sim.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ComparisonResult(Shown):
    """Every plan that was simulated: `best`, `metrics`, `tables`; a run has one table with one plan."""

    comparison: Comparison

    @property
    def tables(self) -> tuple[Table, ...]:
        """One table a workload, in the order of the scenario; the best plan comes first."""
        return self.comparison.tables

    @property
    def best(self) -> RunResult:
        """The best plan. Raises MoesimError where several workloads have one each."""
        if len(self.tables) > 1:
            titles = ", ".join(f"{place}: {table.title}" for place, table in enumerate(self.tables))
            raise MoesimError(f"each workload has its best plan: take tables[i].results[0] ({titles})")
        return self.tables[0].results[0]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best plan, with units in their names."""
        return self.best.metrics

    def as_json(self) -> dict[str, Any]:
        """The result file of `run` and `compare`."""
        return self.comparison.as_json()

    def save(self, folder: str | Path) -> list[Path]:
        """Write report.html, result.json, the timeline and the plots."""
        return outputs.write_outputs(self.comparison, Path(folder))

    def parts(self) -> Iterator[Part]:
        """A ranked table a workload, or all metrics of a single plan; notes below."""
        all_notes = [table.notes for table in self.tables]
        common = [note for note in all_notes[0] if all(note in notes for notes in all_notes)]
        for table in self.tables:
            one = len(table.results) == 1 and not table.left_out
            yield tables.metrics_table(table.results[0]) if one else tables.comparison_table(table)
            yield from quiet_lines(note for note in table.notes if note not in common)
        yield from quiet_lines(common)

    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """`plans`: metrics of every plan; `constants` they rest on; `requests` of a served load."""
        found = {"plans": self._plans, "constants": lambda: list(self.as_json()["constants"])}
        served = any(result.served is not None for table in self.tables for result in table.results)
        return found | ({"requests": self._requests} if served else {})

    def drawings(self) -> dict[str, Callable[[], Figure]]:
        """The figures of the report; with several workloads `2-timeline` is that of the second."""
        return {
            f"{place}-{name}" if len(self.tables) > 1 else name: partial(draw, table)
            for place, table in enumerate(self.tables, start=1)
            for name, draw in outputs.drawings(table).items()
        }

    def _each(self) -> Iterator[tuple[dict[str, Any], Table, RunResult]]:
        """Every plan, and what names it: itself, and its workload where there are several."""
        for table in self.tables:
            workload = {"workload": table.title} if len(self.tables) > 1 else {}
            for result in table.results:
                yield workload | {"plan": result.name}, table, result

    def _plans(self) -> Rows:
        return [
            {
                **named,
                "gain": table.gain(result),
                **result.metrics,
                **{f"breakdown_s.{cause}": time_s for cause, time_s in result.breakdown_s.items()},
            }
            for named, table, result in self._each()
        ]

    def _requests(self) -> Rows:
        rows = []
        for named, _, result in self._each():
            if (served := result.served) is not None:
                asked = served.requests
                columns = (asked.arrival_s, asked.input_tokens, asked.output_tokens, ttft_s(served), e2e_s(served))
                names = ("arrival_s", "input_tokens", "output_tokens", "ttft_s", "e2e_s")
                rows += [named | dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return rows
