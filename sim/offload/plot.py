"""A figure of slots against what they bring, a line a way of serving misses."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl

from scenarios.offload_specs import OffloadSpec
from sim.describe import way_name
from sim.figure import STYLE, WIDTH_IN, Figure
from sim.plots import LINE_COLORS
from sim.result import RunResult, Table


def slot_lines(table: Table) -> dict[str, list[RunResult]]:
    """Plans that differ in nothing but their slots, by the way they serve misses; only those of two sizes or more."""
    lines: dict[str, list[RunResult]] = {}
    for result in table.results:
        if "slots_frac" in result.metrics:
            spec = OffloadSpec.model_validate(result.plan["memory"]["offload"])
            lines.setdefault(way_name(spec), []).append(result)
    found = {name: sorted(line, key=lambda r: r.metrics["slots_frac"]) for name, line in lines.items() if len(line) > 1}
    return dict(sorted(found.items()))


def slots_figure(table: Table) -> Figure:
    """Hits and throughput over the share of experts that a device holds."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.9), layout="constrained")
        panels = figure.subplots(1, 2)
        for number, (name, line) in enumerate(slot_lines(table).items()):
            held = [result.metrics["slots_frac"] for result in line]
            style = {"color": LINE_COLORS[number % len(LINE_COLORS)], "ls": ("-", "--")[number // len(LINE_COLORS) % 2]}
            for axes, values in zip(panels, zip(*map(_values, line), strict=True), strict=True):
                axes.plot(held, values, "o", ms=3, lw=1.3, label=name, **style)
        panels[0].set(title="experts on the device when asked for", ylim=(0, 1.02), ylabel="share of uses")
        panels[1].set(title="tokens/s", ylim=(0, None))
        for axes in panels:
            axes.set_xlabel("experts that a device holds, share of those placed on it")
            axes.grid(True)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _values(result: RunResult) -> Iterator[float]:
    yield result.metrics["cache_hit_frac"]
    yield result.metrics["tokens_per_s"]
