"""What `moesim validate` shows."""

from __future__ import annotations

import json as encoder
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hwmodels.validation.score import Validation, validate_table
from scenarios.errors import ScenarioError
from scenarios.files import whole_file

LIMIT_MISSED = 1


def show(suite: str, table: Path, card: str, limit: float | None, json: str | None) -> int:
    """Print the scores of one table; 1 where a limit is missed, else 0. Raises ScenarioError for an unknown suite."""
    if suite != "kernels":
        raise ScenarioError(f"there is no suite '{suite}'; there is kernels, with --table FILE --card CARD")
    validation = validate_table(table, card)
    text = encoder.dumps({"suites": [score.as_json(limit) for score in validation.scores]}, indent=2) + "\n"
    if json == "-":
        print(text, end="", flush=True)
    else:
        Console().print(_table(validation, limit))
        for reason, count in validation.predicted.left_out.items():
            print(f"left out: {count:,} rows, {reason}")
        if json is not None:
            with whole_file(Path(json)) as temporary:
                temporary.write_text(text)
    return 0 if all(score.meets(limit) for score in validation.scores) else LIMIT_MISSED


def _table(validation: Validation, limit: float | None) -> Table:
    first = validation.scores[0] if validation.scores else None
    laws = f" on {first.card}, constants {first.kernels}" if first else ""
    table = Table(title=f"{validation.timings.path.name}{laws}", title_justify="left", title_style="bold", box=None)
    table.add_column("kernels and data type")
    for name in ("rows", "mean error", "median", "p90", "bias", *(["limit"] if limit is not None else [])):
        table.add_column(name, justify="right")
    for score in validation.scores:
        errors = [f"{value:.1%}" for value in (score.mean_ape, score.median_ape, score.p90_ape)]
        verdict = [] if limit is None else [f"{limit:.0%} " + ("ok" if score.meets(limit) else "missed")]
        table.add_row(score.name, f"{score.n:,}", *errors, f"{score.bias:+.1%}", *verdict)
    return table
