"""Results read back from files: shown again, and set beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from moesim.shown import Part, Rows, Shown, as_parts, quiet_lines
from sim.outputs import write_named
from sim.result_file import Changed, ResultFile, changes, other_constants, other_workloads, read_result, unmatched
from sim.tables import shown_metric
from sim.wording import shown_percent

if TYPE_CHECKING:
    from sim.figure import Figure

SHOWN = 20
"""Changed metrics, and constants, that the terminal shows; the JSON has all."""
MAIN = ("step_time_s", "tokens_per_s", "goodput_tokens_per_s", "ttft_s.p50", "tpot_s.p50", "memory_bytes.peak")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredResult(Shown):
    """A result file of `run`, `compare` or `place`: `file` has its plans; no figures, which need the simulation."""

    file: ResultFile
    document: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The file, in the present schema."""
        return self.document

    def save(self, folder: str | Path) -> list[Path]:
        """Write result.json, in the present schema."""
        return write_named(Path(folder), {"result.json": self.json_text()}, {})

    def parts(self) -> Iterator[Part]:
        """A table a workload: plans, the best first, and their main metrics."""
        for number, plans in enumerate(self.file.tables, start=1):
            names = [name for name in MAIN if all(name in plan.metrics for plan in plans)]
            table = Table("plan", *names, "gain", title=f"{self.file.scenario}, workload {number}", box=None)
            for plan in plans:
                cells = [shown_metric(name, plan.metrics[name]) for name in names]
                table.add_row(*map(Text, (plan.name, *cells, shown_percent(plan.gain, signed=True))))
            yield table
        yield from quiet_lines(self.file.notes)

    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """`plans`: metrics of every plan; `constants` they rest on."""
        return {"plans": self._plans, "constants": lambda: [one.model_dump() for one in self.file.constants]}

    def drawings(self) -> Mapping[str, Callable[[], Figure | None]]:
        """None."""
        return {}

    def _plans(self) -> Rows:
        tables = self.file.tables
        several = len(tables) > 1
        return [
            ({"workload": number} if several else {}) | {"plan": plan.name, "gain": plan.gain} | plan.metrics
            for number, table in enumerate(tables, start=1)
            for plan in table
        ]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DifferenceResult(Shown):
    """Two result files, plan by plan: `changed` metrics beyond `limit`, and whether there is no difference (`ok`)."""

    before: ResultFile
    after: ResultFile
    limit: float

    @property
    def compared(self) -> list[Changed]:
        """Every metric of the plans that both have."""
        return list(changes(self.before, self.after))

    @property
    def changed(self) -> list[Changed]:
        """Metrics that changed by more than the limit, the largest change first."""
        found = [one for one in self.compared if abs(one.change_frac) > self.limit]
        return sorted(found, key=lambda one: (-abs(one.change_frac), one.workload, one.plan, one.metric))

    @property
    def ok(self) -> bool:
        """Whether both have the same plans, and no metric changed by more than the limit."""
        return not (self.changed or unmatched(self.before, self.after) or unmatched(self.after, self.before))

    def as_json(self) -> dict[str, Any]:
        """Versions, changed metrics, plans and constants that only one has."""
        return {
            "before": {"moesim": self.before.moesim, "scenario": self.before.scenario},
            "after": {"moesim": self.after.moesim, "scenario": self.after.scenario},
            "limit": self.limit,
            "changed": self._rows(),
            "only_before": unmatched(self.before, self.after),
            "only_after": unmatched(self.after, self.before),
            "workloads": other_workloads(self.before, self.after),
            "constants": other_constants(self.before, self.after),
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write diff.json."""
        return write_named(Path(folder), {"diff.json": self.json_text()}, {})

    def parts(self) -> Iterator[Part]:
        """Changed metrics, the best plans of both, and what the results rest on that differs."""
        changed = self.changed
        if changed:
            table = Table("workload", "plan", "metric", "before", "after", "change", box=None, pad_edge=False)
            for one in changed[:SHOWN]:
                values = (shown_metric(one.metric, one.before), shown_metric(one.metric, one.after))
                change = shown_percent(one.change_frac, signed=True)
                table.add_row(*map(Text, (str(one.workload + 1), one.plan, one.metric, *values, change)))
            yield table
        yield from as_parts(self._sentences(len(changed)))

    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """`changed`: metrics before and after."""
        return {"changed": self._rows}

    def drawings(self) -> Mapping[str, Callable[[], Figure | None]]:
        """None."""
        return {}

    def _rows(self) -> Rows:
        return [
            {
                "workload": one.workload + 1,
                "plan": one.plan,
                "metric": one.metric,
                "before": one.before,
                "after": one.after,
                "change": one.change_frac,
            }
            for one in self.changed
        ]

    def _sentences(self, n_changed: int) -> Iterator[str]:
        compared = self.compared
        plans = {(one.workload, one.plan) for one in compared}
        more = f" ({SHOWN} shown)" if n_changed > SHOWN else ""
        yield (
            f"{n_changed} of {len(compared)} metrics of {len(plans)} plans differ"
            f"{f' by more than {shown_percent(self.limit)}' if self.limit else ''}{more}."
        )
        for number, tables in enumerate(zip(self.before.tables, self.after.tables, strict=False), start=1):
            was, now = (table[0].name for table in tables)
            if was != now:
                yield f"The best plan of workload {number} was {was}, and is {now}."
        for word, names in (
            ("Only before", unmatched(self.before, self.after)),
            ("Only after", unmatched(self.after, self.before)),
            ("Workloads differ", other_workloads(self.before, self.after)),
            ("Constants that differ", other_constants(self.before, self.after)),
        ):
            if names:
                rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                yield f"{word}: {', '.join(names[:SHOWN])}{rest}."


def read(path: str | Path) -> StoredResult:
    """The result of a file of `--json`, or of a folder of `--out`, whichever version wrote it.

    Raises MoesimError where it is none, or that of a later moesim.
    """
    return StoredResult(*read_result(Path(path)))


def diff(before: str | Path, after: str | Path, limit: float = 0.0) -> DifferenceResult:
    """Two stored results beside each other; metrics that changed by no more than `limit` (a share) count as equal."""
    return DifferenceResult(read(before).file, read(after).file, limit)
