"""`moesim place`: solve or read a plan, judge it, explain it, write it for an engine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import moesim
from placement.formats import FORMATS, check_export, export_plan
from scenarios.files import check_file, check_folder, write_or_print
from scenarios.loader import LoadedScenario
from scenarios.placement_specs import PlacementSpec
from sim import outputs
from sim.place import Placed, Told, place

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

OWN_FILE = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Where results go: an export as (format, file), the file of `--json`, the folder of `--out`."""

    export: tuple[str, Path] | None = None
    json: str | None = None
    out: Path | None = None

    def check(self) -> None:
        """Raise MoesimError where something could not be written, before it is computed."""
        if self.export is not None:
            check_export(*self.export)
            check_file(self.export[1])
        if self.json not in (None, "-"):
            check_file(Path(str(self.json)))
        if self.out is not None:
            check_folder(self.out)


def with_plan(scenario: LoadedScenario, file: Path | None) -> PlacementSpec:
    """The scenario's placement, or the plan of `file` with its split; paths are those of the working directory."""
    own = scenario.spec.placement
    if file is None:
        return own
    kept = {name: getattr(own, name) for name in ("redundant", "split") if name in own.model_fields_set}
    return PlacementSpec.model_validate(kept | {"file": str(file.absolute())})


def show(
    scenario: LoadedScenario, plan: PlacementSpec, targets: Targets, *, explain: bool = False, quiet: bool = False
) -> None:
    """Write what `targets` ask for, then print tables, unless `quiet` or JSON goes to the terminal."""
    targets.check()
    spec = scenario.spec.model_copy(update={"placement": plan})
    with _told(quiet) as told:
        placed = place(spec, scenario.path.parent, moesim.__version__, explain=explain, told=told)
    if targets.export is not None:
        export_plan(targets.export[0], placed.file, targets.export[1])
    if targets.out is not None:
        outputs.write_outputs(placed.comparison, targets.out, {placed.comparison.tables[0].first, placed.plan})
        export_plan("moesim", placed.file, targets.out / OWN_FILE)
        write_or_print(outputs.json_of(placed.as_json()), str(targets.out / "result.json"))
    if targets.json is not None:
        write_or_print(outputs.json_of(placed.as_json()), targets.json)
    if not quiet and targets.json != "-":
        _print(placed, targets)


@contextmanager
def _told(quiet: bool) -> Iterator[Told]:
    """What hears of progress: a line on a terminal, nobody elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading the trace") as status:
        yield status.update


def _print(placed: Placed, targets: Targets) -> None:
    from rich.console import Console

    from sim import tables
    from sim.place_text import budget_parts, explanation_parts, judgement_table, measures_table

    console = Console()
    (table,) = placed.comparison.tables
    console.print(measures_table(placed))
    _print_parts(console, budget_parts(placed))
    console.print(judgement_table(placed))
    console.print(tables.comparison_table(table))
    _print_parts(console, explanation_parts(placed))
    for note in table.notes:
        console.print(note, style="dim", highlight=False, markup=False)
    if targets.export is not None:
        told = f"Exported: {targets.export[1]} ({FORMATS[targets.export[0]].taken_by})"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    if targets.out is not None:
        console.print(f"Report: {targets.out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


def _print_parts(console: Console, parts: Iterable[Table | str]) -> None:
    for part in parts:
        console.print(part, highlight=False, markup=False) if isinstance(part, str) else console.print(part)
