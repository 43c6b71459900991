"""Tables: the columns of a comparison as text, shared by terminal and report, and rich tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import rich.box
import rich.table
from rich.console import Console, RenderableType
from rich.text import Text

from sim.result import RunResult, Table
from sim.wording import (
    GIB,
    decimals,
    shown_bytes,
    shown_gain,
    shown_name,
    shown_percent,
    shown_rate,
    shown_time,
    time_unit,
)

WIDTH = 80
"""Characters that every table fits into, long plan names folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table: header, its unit ('' where cells carry their own), one cell a plan, what it means.

    gives_way  left out of the terminal's table where names of plans would break within their words.
    """

    header: str
    unit: str = ""
    cells: tuple[str, ...]
    meaning: str
    numeric: bool = True
    gives_way: bool = False

    @property
    def title(self) -> str:
        """Header with its unit, on one or two lines."""
        return f"{self.header}\n[{self.unit}]" if self.unit else self.header

    @property
    def width(self) -> int:
        """Characters of the longest cell or line of the title."""
        return max(map(len, (*self.title.split("\n"), *self.cells)))


def comparison_columns(table: Table) -> tuple[Column, ...]:
    """Columns of the ranked table; those that say nothing here (no second node, nothing hidden) are left out."""
    results, served = table.results, table.results[0].served is not None
    named = [shown_name(result.name) for result in results]
    ranks = [str(rank) for rank in range(1, len(results) + 1)]
    gains = tuple(shown_gain(table, result) for result in results)
    return (
        Column(header="#", cells=tuple(ranks), meaning="rank by tokens/s"),
        Column(header="plan", cells=tuple(named), meaning="what varies between the rows", numeric=False),
        *(_latencies(results) if served else _step_times(results)),
        Column(header="tokens/s", cells=_cells(results, "tokens_per_s", shown_rate), meaning="of all devices together"),
        Column(header="gain", cells=gains, meaning=f"{GAINS[table.ranked_by]} over {shown_name(table.first)}"),
        *([] if served else _load_columns(results)),
        *([] if served else _traffic_columns(results)),
        *_offload_columns(results),
        *_memory_columns(results),
    )


def comparison_table(table: Table) -> rich.table.Table:
    """The ranked plans of one workload, set tighter, or without some columns, where they need over 80 characters."""
    columns = _fitting(comparison_columns(table))
    natural = sum(column.width + 2 for column in columns)
    shown = _empty_table(table.title, gap=1 if natural <= WIDTH else 0)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        shown.add_column(Text(column.title), justify=justify, no_wrap=column.numeric, overflow="fold")
    for row, result in enumerate(table.results):
        style = "bold" if row == 0 and len(table.results) > 1 else "dim" if result.name == table.first else ""
        shown.add_row(*(Text(column.cells[row]) for column in columns), style=style)
    return shown


def _fitting(columns: Sequence[Column]) -> list[Column]:
    """The columns beside which words of names stay whole; the last of those that give way goes first."""
    kept = list(columns)
    longest_word = max(len(word) for column in columns if not column.numeric for word in " ".join(column.cells).split())
    spare = [column for column in columns if column.gives_way]
    while spare and sum(column.width + 1 for column in kept if column.numeric) + longest_word > WIDTH:
        kept.remove(spare.pop())
    return kept


def metrics_table(result: RunResult) -> rich.table.Table:
    """All metrics of one plan, and where its step time goes."""
    shown = _empty_table(shown_name(result.name))
    shown.add_column("metric", overflow="fold")
    shown.add_column("value", justify="right", no_wrap=True)
    shown.add_column("share of step", justify="right", no_wrap=True)
    for name in result.metrics:
        if not name.endswith((".low", ".high")):
            shown.add_row(Text(name), Text(_with_band(result, name)), "")
    shown.add_section()
    total_s = sum(result.breakdown_s.values())
    for cause, time_s in result.breakdown_s.items():
        share = shown_percent(time_s / total_s) if total_s > 0 else ""
        shown.add_row(Text(f"breakdown_s.{cause}"), Text(shown_time(time_s)), Text(share))
    return shown


def _with_band(result: RunResult, name: str) -> str:
    """A metric with its unit, and the ends of its 80 % band where it has one: `12.3 ms (11.4 ms to 13.5 ms)`."""
    value = shown_metric(name, result.metrics[name])
    if f"{name}.low" not in result.metrics:
        return value
    low, high = (shown_metric(name, result.metrics[f"{name}.{end}"]) for end in ("low", "high"))
    unit = value.rpartition(" ")[2]
    if low.endswith(f" {unit}") and high.endswith(f" {unit}"):
        low, high = (text.removesuffix(f" {unit}") for text in (low, high))
    return f"{value} ({low} to {high})"


def shown_metric(name: str, value: float) -> str:
    """Value of a metric in the unit that its name states, scaled for reading."""
    base = name.partition(".")[0]
    if base.endswith("memory_bytes"):
        return f"{value / GIB:,.2f} GiB"
    if base.endswith("bytes"):
        return shown_bytes(value)
    if "_per_s" in base:
        return f"{shown_rate(value)} /s"
    if base.endswith("_s"):
        return shown_time(value)
    if base.endswith("_frac"):
        return shown_percent(value)
    if "_usd_" in base or "_j_" in base:
        return f"{value:,.3g} {'USD' if '_usd_' in base else 'J'}"
    return f"{value:,.3f}"


def plain_text(shown: RenderableType, width: int = WIDTH) -> str:
    """A rich table, or what else rich can print, as text without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False, force_jupyter=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _empty_table(title: str, gap: int = 1) -> rich.table.Table:
    return rich.table.Table(
        title=Text(shown_name(title), style="bold"),
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, gap),
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        header_style="",
    )


def _cells(results: Sequence[RunResult], name: str, shown: Callable[[float], str]) -> tuple[str, ...]:
    return tuple(shown(result.metrics[name]) for result in results)


def _has(results: Sequence[RunResult], name: str) -> bool:
    return all(name in result.metrics for result in results)


def _step_times(results: Sequence[RunResult]) -> Iterator[Column]:
    times_s = [result.metrics["step_time_s"] for result in results]
    unit, length_s = time_unit(times_s)
    places = decimals(max(times_s) / length_s)
    cells = tuple(f"{time_s / length_s:,.{places}f}" for time_s in times_s)
    yield Column(header="step", unit=unit, cells=cells, meaning="mean time of a step")
    if _has(results, "step_time_s.low"):
        ends = [(r.metrics["step_time_s.low"] / length_s, r.metrics["step_time_s.high"] / length_s) for r in results]
        fewer = max(places - 1, 0)
        yield Column(
            header="80 % band",
            unit=unit,
            cells=tuple(f"{low:,.{fewer}f}–{high:,.{fewer}f}" for low, high in ends),
            meaning="where a measured step lies in four of five cases; errors of the laws move all rows together",
        )


def _alone(results: Sequence[RunResult]) -> bool:
    """Whether every plan has one device, whose load is the mean and which all tokens visit."""
    return all(result.device_tokens.shape[-1] == 1 for result in results)


GAINS = {
    "tokens_per_s": "tokens/s",
    "goodput_tokens_per_s": "tokens/s of requests within their limits",
    "e2e_s.mean": "mean speed of a request",
}
"""What a gain is one in, by the metric that plans are ranked by."""


def _latencies(results: Sequence[RunResult]) -> Iterator[Column]:
    """What requests saw, and the share that was served within the limits."""
    for name, header, meaning in (
        ("ttft_s", "TTFT", "time to first token"),
        ("tpot_s", "TPOT", "time per output token after the first"),
    ):
        ends = [(result.metrics.get(f"{name}.p50", 0.0), result.metrics.get(f"{name}.p99", 0.0)) for result in results]
        unit, length_s = time_unit([high for _, high in ends])
        places = decimals(max(high for _, high in ends) / length_s, 3)
        cells = tuple(f"{low / length_s:,.{places}f}–{high / length_s:,.{places}f}" for low, high in ends)
        yield Column(
            header=f"{header} p50–99", unit=unit, cells=cells, meaning=f"{meaning}: median and 99th percentile"
        )
    if _has(results, "slo_frac"):
        cells = _cells(results, "slo_frac", shown_percent)
        yield Column(header="within\nlimits", cells=cells, meaning="requests that met the limits of serving.slo")


def _load_columns(results: Sequence[RunResult]) -> Iterator[Column]:
    if not _has(results, "load_imbalance") or _alone(results):
        return
    judged = _cells(results, "load_imbalance", "{:.2f}".format)
    if not _has(results, "load_imbalance.fit"):
        yield Column(header="imbalance", cells=judged, meaning="most loaded rank over the mean")
        return
    planned = _cells(results, "load_imbalance.fit", "{:.2f}".format)
    yield Column(
        header="imbalance\nfit→judged",
        cells=tuple(f"{fit}→{seen}" for fit, seen in zip(planned, judged, strict=True)),
        meaning="most loaded rank over the mean: on the tokens that plans were fitted on → on those that judge them",
    )


def _traffic_columns(results: Sequence[RunResult]) -> Iterator[Column]:
    if _has(results, "devices_per_token") and not _alone(results):
        cells = _cells(results, "devices_per_token", "{:.2f}".format)
        yield Column(
            header="devices\n/token",
            cells=cells,
            meaning="distinct devices that a token visits in a layer",
            gives_way=True,
        )
    if any(result.metrics.get("cross_node_frac", 0.0) > 0 for result in results):
        cells = tuple(shown_percent(result.metrics.get("cross_node_frac", 0.0)) for result in results)
        yield Column(
            header="cross\nnode",
            cells=cells,
            meaning="of the nodes that tokens visit, those not their own",
            gives_way=True,
        )
    if any(result.metrics.get("hidden_comm_frac", 0.0) > 0 for result in results):
        cells = _cells(results, "hidden_comm_frac", shown_percent)
        yield Column(header="hidden\ncomm.", cells=cells, meaning="communication that runs behind computing")


def _offload_columns(results: Sequence[RunResult]) -> Iterator[Column]:
    """What slots for experts hold and cost; a plan with all experts on its devices always hits."""
    if not any("cache_hit_frac" in result.metrics for result in results):
        return
    hits = tuple(shown_percent(result.metrics.get("cache_hit_frac", 1.0)) for result in results)
    yield Column(header="hits", cells=hits, meaning="experts that were on the device, or on their way, when asked for")
    exposed = [r.metrics.get("exposed_copy_s", 0.0) / r.metrics["step_time_s"] for r in results]
    cells = tuple(map(shown_percent, exposed))
    yield Column(header="copies\nshown", cells=cells, meaning="of the step: how much shorter it is with free copies")


def _memory_columns(results: Sequence[RunResult]) -> Iterator[Column]:
    if _has(results, "memory_bytes.peak"):
        cells = _cells(results, "memory_bytes.peak", lambda used: f"{used / GIB:,.1f}")
        yield Column(header="memory", unit="GiB", cells=cells, meaning="weights and KV cache of the fullest device")
