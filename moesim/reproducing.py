"""What `moesim reproduce` shows and writes."""

from __future__ import annotations

import json as encoder
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import moesim
from moesim.progress import progress
from scenarios.catalog import find_paper, list_papers
from scenarios.files import whole_file, write_or_print
from sim.reproduce.claims import Reproduction, as_json, missed, reproduced
from sim.reproduce.tables import claims_table, constants_table, summary, systems_table


def show(systems: Sequence[str], limit: float, json: str | None, out: Path | None, *, quiet: bool) -> bool:
    """Published results against predictions of the systems (default: all); whether all hold the limit."""
    paths = [find_paper(system) for system in systems] or [path for _, path in list_papers()]
    papers: list[Reproduction] = []
    with progress("reproduce", quiet=quiet) as say:
        for number, path in enumerate(paths):
            if say is not None:
                say(path.stem, number / len(paths))
            papers.append(reproduced(path, moesim.__version__))
    text = encoder.dumps(as_json(papers), indent=2, allow_nan=False) + "\n"
    if out is not None:
        _write(papers, limit, text, out)
    if json is not None:
        write_or_print(text, json)
    if not quiet and json != "-":
        _print(papers, limit)
    return not missed([row for paper in papers for row in paper.rows], limit)


def _print(papers: Sequence[Reproduction], limit: float) -> None:
    console = Console()
    rows = [row for paper in papers for row in paper.rows]
    for table in (claims_table(rows), constants_table(papers), systems_table(papers, limit)):
        console.print(table)
        console.print()
    for line in summary(rows, limit):
        console.print(line, highlight=False, markup=False)


def _write(papers: Sequence[Reproduction], limit: float, text: str, folder: Path) -> None:
    from sim.reproduce.plots import reproductions_png

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "reproductions.json": text.encode(),
        "reproductions.png": reproductions_png(papers, limit),
    }.items():
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(content)
