"""What `moesim bound` shows and writes."""

from __future__ import annotations

import json as encoder
from pathlib import Path

from rich.console import Console

import moesim
from moesim.progress import progress
from scenarios.files import whole_file, write_or_print
from scenarios.loader import LoadedScenario
from sim.bound import tables
from sim.bound.bounds import Bounds, bounds_of
from sim.bound.purchase import Choice, choose
from sim.session import Session


def show(scenario: LoadedScenario, json: str | None, out: Path | None, *, quiet: bool) -> None:
    """Bounds of the scenario, and the best purchase where it has a budget."""
    session = Session(scenario.spec, scenario.path.parent)
    with progress("bounds", quiet=quiet) as say:
        bounds = bounds_of(session, say)
        choice = None if scenario.spec.budget is None else choose(scenario.spec, session, say)
    text = encoder.dumps(tables.as_json(bounds, choice, moesim.__version__), indent=2, allow_nan=False) + "\n"
    if out is not None:
        _write(bounds, choice, text, out)
    if json is not None:
        write_or_print(text, json)
    if not quiet and json != "-":
        _print(bounds, choice)


def _print(bounds: Bounds, choice: Choice | None) -> None:
    console = Console()
    console.print(tables.resource_table(bounds))
    console.print(tables.lever_table(bounds))
    console.print(tables.batch_table(bounds))
    lines = tables.gap_lines(bounds)
    if choice is not None:
        console.print(tables.group_table(choice))
        console.print(tables.purchase_table(choice))
        lines += tables.purchase_lines(choice)
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _write(bounds: Bounds, choice: Choice | None, text: str, folder: Path) -> None:
    from sim.bound import plots

    folder.mkdir(parents=True, exist_ok=True)
    pictures = plots.pictures(bounds, choice)
    for name, content in {"bound.json": text.encode(), **pictures}.items():
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(content)
