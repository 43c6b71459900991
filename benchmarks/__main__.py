"""`python -m benchmarks [NAME ...]`: measure the speed goals in one run, beside the machine's own SimPy event rate.

`python -m benchmarks --plot` draws the runs of `history.jsonl`, to which a run of all suites adds a line.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.caches import cache_rows
from benchmarks.executors import executor_rows
from benchmarks.footprint import footprint_rows
from benchmarks.history import draw
from benchmarks.layers import layer_rows
from benchmarks.machine import REFERENCE_EVENTS_PER_S, Row, simpy_events_per_s
from benchmarks.placement import placement_rows
from benchmarks.planes import reduction_rows, step_rows
from benchmarks.serving import serving_rows
from benchmarks.sweeps import sweep_rows
from moesim.version import commit_of

SUITES: dict[str, Callable[[], list[Row]]] = {
    "executors": executor_rows,
    "reduction": reduction_rows,
    "steps": step_rows,
    "layers": layer_rows,
    "placement": placement_rows,
    "serving": serving_rows,
    "caches": cache_rows,
    "sweeps": sweep_rows,
    "footprint": footprint_rows,
}
HISTORY = Path(__file__).parent / "history.jsonl"


def main(names: list[str]) -> None:
    """Run the suites and print a table; without names all of them, and the history gets a line."""
    if names == ["--plot"]:
        print(draw(HISTORY))
        return
    unknown = sorted(set(names) - set(SUITES))
    if unknown:
        raise SystemExit(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    rates, rows = [simpy_events_per_s()], []
    for name in names or SUITES:
        rows += SUITES[name]()
        rates.append(simpy_events_per_s())
    rate = float(np.median(rates))
    table = Table(
        title=f"SimPy process + timeout here: {rate / 1e6:.2f} M events/s (goals: {REFERENCE_EVENTS_PER_S / 1e6} M)"
    )
    for column in ("goal", "target", "measured", "scaled to the goals' machine", "unit", ""):
        table.add_column(column, justify="left" if column in ("goal", "unit", "") else "right")
    for row in rows:
        verdict = "ok" if row.ok(rate) else "missed"
        target = f"{'<=' if row.at_most else '>='} {row.target:,.4g}"
        table.add_row(row.goal, target, f"{row.measured:,.4g}", f"{row.scaled(rate):,.4g}", row.unit, verdict)
    console = Console(width=140)
    console.print(table)
    if not names:
        beside = peers.beside_aiconfigurator()
        if beside is not None:
            console.print(*peers.shown(beside), sep="\n")
        run = {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": commit_of(Path(__file__).parent) or "",
            "python": platform.python_version(),
            "numpy": np.__version__,
            "simpy_events_per_s": round(rate),
            "goals": {row.goal: round(_reached(row, rate), 3) for row in rows},
            **({} if beside is None else {"peers": peers.as_json(beside)}),
        }
        with HISTORY.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")


def _reached(row: Row, rate: float) -> float:
    """How far a goal is reached on the goals' machine: 1 or more where it is met."""
    share = row.scaled(rate) / row.target
    return 1 / share if row.at_most else share


if __name__ == "__main__":
    main(sys.argv[1:])
