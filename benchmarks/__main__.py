"""`python -m benchmarks [NAME ...]`: measure the speed goals in one run, beside the machine's own SimPy event rate."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.executors import executor_rows
from benchmarks.footprint import footprint_rows
from benchmarks.layers import layer_rows
from benchmarks.machine import REFERENCE_EVENTS_PER_S, Row, simpy_events_per_s
from benchmarks.placement import placement_rows
from benchmarks.planes import reduction_rows, step_rows

SUITES: dict[str, Callable[[], list[Row]]] = {
    "executors": executor_rows,
    "reduction": reduction_rows,
    "steps": step_rows,
    "layers": layer_rows,
    "placement": placement_rows,
    "footprint": footprint_rows,
}
BASELINE = Path(__file__).parent / "baseline.json"


def main(names: list[str]) -> None:
    """Run the suites and print a table; without names all of them, and the baseline file is written anew."""
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
    Console(width=140).print(table)
    if not names:
        shares = {row.goal: round(row.scaled(rate) / row.target, 3) for row in rows}
        head = {"python": platform.python_version(), "numpy": np.__version__, "value": "scaled figure over its target"}
        BASELINE.write_text(json.dumps({**head, "goals": shares}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
