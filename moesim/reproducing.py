"""What `moesim reproduce` shows and writes."""

from __future__ import annotations

import json as encoder
from collections.abc import Sequence

from rich.console import Console

import moesim
from moesim.progress import progress
from scenarios.catalog import find_paper, list_papers
from scenarios.files import write_or_print
from sim.reproduce.claims import Row, as_json, claims_table, missed, reproduced, summary


def show(systems: Sequence[str], limit: float, json: str | None, *, quiet: bool) -> bool:
    """Published results against predictions of the systems (default: all); whether all hold the limit."""
    paths = [find_paper(system) for system in systems] or [path for _, path in list_papers()]
    rows: list[Row] = []
    with progress("reproduce", quiet=quiet) as say:
        for number, path in enumerate(paths):
            if say is not None:
                say(path.stem, number / len(paths))
            rows += reproduced(path, moesim.__version__)
    if json is not None:
        write_or_print(encoder.dumps(as_json(rows), indent=2, allow_nan=False) + "\n", json)
    if not quiet and json != "-":
        console = Console()
        console.print(claims_table(rows))
        for line in summary(rows, limit):
            console.print(line, highlight=False, markup=False)
    return not missed(rows, limit)
