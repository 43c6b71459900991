"""Writes the table of docs/background/reproductions.md and docs/images/reproductions.png, from the shipped papers.

`python -m docs.reproduced`, or `make reproductions`; takes some minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import moesim
from scenarios.catalog import list_papers
from scenarios.files import whole_file
from sim.reproduce.claims import Reproduction, reproduced
from sim.reproduce.plots import reproductions_png
from sim.reproduce.tables import SYSTEM_HEADERS, summary, system_errors

HERE = Path(__file__).parent
PAGE = HERE / "background" / "reproductions.md"
LIMIT = 0.35
START, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def lines_of(papers: Sequence[Reproduction]) -> list[str]:
    """The rows of the table, in Markdown."""
    return ["| " + " | ".join(system_errors(paper.system, paper.rows, LIMIT).cells()) + " |" for paper in papers]


def table_of(papers: Sequence[Reproduction]) -> str:
    """The table with a row over all systems, and the sentences under it."""
    rows = [row for paper in papers for row in paper.rows]
    everything = "| " + " | ".join(system_errors("all", rows, LIMIT).cells()) + " |"
    head = ["| " + " | ".join(SYSTEM_HEADERS) + " |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines_of(papers), everything, "", " ".join(summary(rows, LIMIT)), ""])


def main() -> None:
    """Reproduce all shipped papers and write page and picture."""
    papers = [reproduced(path, moesim.__version__) for _, path in list_papers()]
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(before + START + table_of(papers) + END + rest.partition(END)[2])
    with whole_file(HERE / "images" / "reproductions.png") as temporary:
        temporary.write_bytes(reproductions_png(papers, LIMIT))


if __name__ == "__main__":
    main()
