"""The report: one HTML page that needs no network, made from a comparison, with charts and drawn figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sim.page.charts import INTERACTIVE, charts_of
from sim.page.render import CHARTS, render
from sim.result import Comparison, Constant, RunResult, Table
from sim.tables import comparison_columns, shown_metric
from sim.wording import answer, baseline, question, shown_name, shown_percent, shown_time

CAPTIONS = {
    "serving": (
        "What requests saw",
        "Above, the share of requests that waited no longer; below, what the engine did meanwhile, summed over its "
        "attention ranks; where devices come and go these too, with lines where a change begins and is ready. The "
        "figures that follow show a decode step of typical size.",
    ),
    "slots": (
        "What slots for experts bring",
        "Plans that differ in nothing but the experts that a device holds: how many of the experts that steps ask for "
        "are there, or on their way, and the throughput. A line a way of evicting, prefetching and serving misses.",
    ),
    "step-time": (
        "Where the step time goes",
        "Mean time of a device per step by cause. Transfer is the device's own sending and receiving that no computing "
        "hides; waiting is for other devices, or for work that comes before.",
    ),
    "timeline": (
        "What devices do in a step",
        "The step of median time, of the best plan and of the baseline (or of the second, where the baseline is best), "
        "on one time axis. Drag to move, Ctrl and wheel to zoom; pointing at a bar says what it is. Grey is waiting.",
    ),
    "device-load": (
        "Load of the devices",
        "Routed tokens of each device in each MoE layer, over the mean of the layer, averaged over the steps. "
        'Red devices hold the others up; copies of experts are under "Colours show". Drag the ends of the colour '
        "scale to see only some values.",
    ),
    "imbalance": (
        "Load imbalance by layer",
        "Tokens of the most loaded rank over the mean, averaged over the steps. 1.0 is perfect balance.",
    ),
    "traffic": (
        "Traffic between devices",
        "Bytes per step from device to device, dispatch and combine together; between nodes where there are more than "
        "64 devices. The colour scale starts at zero only where the smallest amount is below half of the largest.",
    ),
    "links": (
        "What the links carry",
        "Time that every port is busy per step: bytes of dispatch and combine in all MoE layers over the link's "
        "effective bandwidth, without latency. The colour scale starts at zero only where the least busy port is below "
        "half of the busiest.",
    ),
    "pipeline": (
        "Stages of the pipeline",
        "What every stage does in a step of median time, with its microbatches by number; where nothing stands, it "
        "waits.",
    ),
    "step-distribution": (
        "Spread of the step times",
        "Quartiles and median over the simulated steps; the line runs from the 1st to the 99th percentile.",
    ),
}
_SVG_LIMIT_BYTES = 150_000
_CHART_CHARS = 1_500_000
"""Letters that the data of all charts of a page may take, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A drawn figure; `png` is for pages, where the SVG is large."""

    name: str
    svg: bytes
    png: bytes

    def data_uri(self) -> str:
        """The picture as an address that holds all of it: SVG, or PNG where that is heavy."""
        heavy = len(self.svg) > _SVG_LIMIT_BYTES
        kind, content = ("png", self.png) if heavy else ("svg+xml", self.svg)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def render_report(comparison: Comparison, pictures: Sequence[Sequence[Picture]]) -> str:
    """HTML of the report; `pictures` holds those of each table, in order. All text is escaped."""
    tables = list(zip(comparison.tables, pictures, strict=True))
    budget = _CHART_CHARS // max(1, len(tables))
    charts = [charts_of(table, [picture.name for picture in drawn], budget) for table, drawn in tables]
    prefixes = [f"{number}-" if len(tables) > 1 else "" for number in range(1, len(tables) + 1)]
    return render(
        "comparison.html",
        CHARTS,
        charts,
        title=comparison.scenario,
        comparison=comparison,
        question=question(comparison.tables),
        version=comparison.provenance["moesim"],
        sections=[_section(*of, prefix) for of, prefix in zip(tables, prefixes, strict=True)],
        constants=_by_trust(comparison.constants),
        kinds=_kinds(comparison.constants),
        provenance=[(key, _plain(value)) for key, value in comparison.provenance.items()],
        wall=shown_time(comparison.wall_s),
    )


def _section(table: Table, pictures: Sequence[Picture], prefix: str) -> dict[str, Any]:
    """What the template shows of one table; `prefix` begins the names of its files."""
    columns = comparison_columns(table)
    return {
        "title": table.title,
        "answer": answer(table),
        "columns": columns,
        "rows": [
            {"cells": [column.cells[row] for column in columns], "mark": _mark(table, result, row)}
            for row, result in enumerate(table.results)
        ],
        "figures": [_figure(picture, prefix) for picture in pictures],
        "notes": table.notes,
        "names": [shown_name(result.name) for result in table.results],
        "metrics": _all_metrics(table),
        "plans": [
            (shown_name(result.name), json.dumps(result.plan, indent=2, default=str)) for result in table.results
        ],
        "workload": json.dumps(table.workload, indent=2, default=str),
    }


def _figure(picture: Picture, prefix: str) -> dict[str, Any]:
    title, caption = CAPTIONS[picture.name]
    if picture.name in INTERACTIVE:
        return {"title": title, "caption": caption, "chart": picture.name, "file": prefix + picture.name}
    return {"title": title, "caption": caption, "chart": "", "source": picture.data_uri()}


def _mark(table: Table, result: RunResult, row: int) -> str:
    if len(table.results) == 1:
        return ""
    return " ".join(["best"] * (row == 0) + ["baseline"] * (result is baseline(table)))


def _all_metrics(table: Table) -> list[tuple[str, list[str]]]:
    """Every metric and cause of time with its values, a row a name."""
    names = list(dict.fromkeys(name for result in table.results for name in result.metrics))
    causes = list(dict.fromkeys(cause for result in table.results for cause in result.breakdown_s))
    rows = [(name, [_shown(name, result.metrics.get(name)) for result in table.results]) for name in names]
    rows += [(f"breakdown_s.{cause}", [_cause(result, cause) for result in table.results]) for cause in causes]
    return rows


def _shown(name: str, value: float | None) -> str:
    return "" if value is None else shown_metric(name, value)


def _cause(result: RunResult, cause: str) -> str:
    time_s, total_s = result.breakdown_s.get(cause), sum(result.breakdown_s.values())
    return "" if time_s is None else f"{shown_time(time_s)} ({shown_percent(time_s / total_s)})"


_TRUST = ("assumed", "derived", "published", "datasheet", "measured")


def _by_trust(constants: Sequence[Constant]) -> list[Constant]:
    """Constants with the least certain kinds first, otherwise as they came."""
    return sorted(constants, key=lambda c: _TRUST.index(c.kind) if c.kind in _TRUST else -1)


def _kinds(constants: Sequence[Constant]) -> str:
    """How many constants there are of each kind: `3 measured, 1 assumed`."""
    counts = {kind: sum(c.kind == kind for c in constants) for kind in dict.fromkeys(c.kind for c in constants)}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
