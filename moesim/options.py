"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change the scenario, e.g. workload.steps=8; repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the split, the batches and random plans.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write results as JSON; - for the terminal.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write report.html, plots, timeline, result.json.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
