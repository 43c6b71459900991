"""Figures of a comparison, each fit for print: units on the axes, a colour a kind of work, legends beside the data."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import TwoSlopeNorm, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sim.figure import STYLE, WIDTH_IN, Figure
from sim.link_plot import draw_links
from sim.pipeline_plot import draw_pipelines
from sim.plot_data import (
    Panel,
    device_ticks,
    distinct_plans,
    gantt_boxes,
    gantt_devices,
    kind_color,
    kinds_in_order,
    layer_ticks,
    relative_load,
)
from sim.result import RunResult, Table
from sim.timeline import contrasted, middle_window
from sim.wording import byte_unit, decimals, shown_gain, shown_name, time_unit

LINE_COLORS = ("#ee6677", "#4477aa", "#228833", "#ccbb44", "#aa3377", "#66ccee")
_QUIET, _INK, _ACCENT = "#c9c9c9", "#222222", "#ee6677"
_LOAD_PANELS = 4

Style = dict[str, Any]
Draw = Callable[[Table], Figure]


def _styled(draw: Draw) -> Draw:
    """The same figure in the common style, without touching the style of the program around it."""

    @functools.wraps(draw)
    def styled(table: Table) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(table)

    return styled


@_styled
def step_time_figure(table: Table) -> Figure:
    """Mean step time of a device by cause: a stacked bar a plan, best on top; a line below it spans its 80 % band."""
    results = table.results
    totals_s = [sum(result.breakdown_s.values()) for result in results]
    unit, length_s = time_unit(totals_s)
    longest = max(totals_s) / length_s
    kinds = kinds_in_order(kind for result in results for kind in result.breakdown_s)
    figure, axes = _plan_rows(results, extra_in=0.95)
    left = np.zeros(len(results))
    for kind in kinds:
        width = np.array([result.breakdown_s.get(kind, 0.0) for result in results]) / length_s
        axes.barh(range(len(results)), width, left=left, height=0.72, **_fill(kind))
        _label_segments(axes, left, width, longest, kind)
        left += width
    furthest = 0.0
    for row, result in enumerate(results):
        gain = "baseline" if result.name == table.first else shown_gain(table, result)
        total = f"{left[row]:,.{decimals(longest)}f}"
        furthest = max(furthest, _band_line(axes, result, row + 0.45, length_s))
        _end_label(axes, left[row] + 0.01 * longest, row, f"{total}   {gain}" if len(results) > 1 else total)
    axes.set_xlim(0, max(longest * 1.4, furthest * 1.02))
    axes.set_xlabel(f"mean time of a device per step ({unit})")
    _kind_legend(figure, kinds)
    return figure


@_styled
def timeline_figure(table: Table) -> Figure:
    """Two MoE layers in the middle of the logged step, of two plans on one time scale; devices are rows."""
    panels = contrasted(table)
    windows = [middle_window(result.log) for result in panels]
    chosen = [gantt_devices(result, window) for result, window in zip(panels, windows, strict=True)]
    longest_s = max(window.end_s - window.begin_s for window in windows)
    unit, length_s = time_unit([longest_s])
    n_rows = max(map(len, chosen))
    panel_in = max(0.6, n_rows * (0.22 if n_rows <= 8 else 0.17))
    figure = Figure(figsize=(WIDTH_IN, len(panels) * (panel_in + 0.3) + 0.75), layout="constrained")
    kinds = {"waiting"}
    for index, (result, window, devices) in enumerate(zip(panels, windows, chosen, strict=True)):
        axes = figure.add_subplot(len(panels), 1, index + 1)
        for kind, boxes in gantt_boxes(result, window, devices).items():
            bars = PolyCollection([box / (length_s, 1) for box in boxes], **_fill(kind))
            axes.add_collection(bars, autolim=False)
            kinds.add(kind)
        axes.set(xlim=(0, longest_s / length_s * 1.005), ylim=(len(devices) - 0.5, -0.5))
        axes.set_yticks(range(len(devices)), [str(device) for device in devices])
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelbottom=index == len(panels) - 1)
        some = f"{len(devices)} of {len(result.log[0].begin_s)} devices, " * (len(devices) < len(result.log[0].begin_s))
        plural = "layers" if len(window.layers) > 1 else "layer"
        layers = f"MoE {plural} {' and '.join(map(str, window.layers))} of " * bool(window.layers)
        _panel_title(axes, table, result, f"{some}{layers}step {result.logged_step}")
    time_label = f"time since the first device began ({unit}); of each device, computing on top"
    figure.supxlabel(time_label, fontsize=8)
    figure.supylabel("device", fontsize=8)
    _kind_legend(figure, kinds_in_order(kinds))
    return figure


@_styled
def device_load_figure(table: Table) -> Figure:
    """Tokens of each device in each MoE layer over the layer's mean: one panel a plan, one diverging colour scale."""
    panels = distinct_plans(table, lambda result: result.device_tokens, _LOAD_PANELS)
    shares = [relative_load(panel.result.device_tokens).T for panel in panels]
    n_devices, n_layers = (max(share.shape[axis] for share in shares) for axis in (0, 1))
    columns = 1 if n_layers > 12 else len(panels)
    rows = -(-len(panels) // columns)
    height_in = max(2.1, rows * (float(np.clip(0.05 * n_devices, 0.75, 1.7)) + 0.3) + 0.45)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=columns > 1, squeeze=False)
    spread = max(float(np.abs(share - 1).max()) for share in shares) or 0.1
    norm = TwoSlopeNorm(1.0, vmin=max(0.0, 1 - spread), vmax=1 + spread)
    for axes, panel, share in zip(grid.flat, panels, shares, strict=True):
        image = axes.imshow(share, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
        _matrix_axes(axes, table, panel)
        _node_lines(axes.axhline, len(share), panel.result.devices_per_node, "#666666")
        axes.set_yticks(device_ticks(len(share), 5))
        axes.set_xticks(places := layer_ticks(table.moe_layers), [str(table.moe_layers[place]) for place in places])
        if columns == 1:
            _corner_note(axes, "; ".join(filter(None, (_alike(panel), f"fullest {share.max():.2f}"))))
    figure.supylabel("device", fontsize=8)
    figure.supxlabel("MoE layer", fontsize=8)
    _colorbar(figure, image, grid, "tokens / mean of the devices", shrink=min(1.0, 2.6 / height_in))
    return figure


@_styled
def traffic_figure(table: Table) -> Figure:
    """Bytes from device to device per step, dispatch and combine together, of two plans on one colour scale."""
    panels = _two_plans(table)
    unit, size = byte_unit(panel.result.traffic_bytes.max() for panel in panels)
    amounts = [np.where(np.eye(len(t), dtype=bool), np.nan, t / size) for t in (p.result.traffic_bytes for p in panels)]
    between = np.concatenate([amount[np.isfinite(amount)] for amount in amounts])
    least, most = (between.min(), between.max()) if between.size and between.max() > 0 else (0.0, 1.0)
    figure = Figure(figsize=(WIDTH_IN, 3.4))
    figure.set_layout_engine("compressed", wspace=0.06)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=len({len(amount) for amount in amounts}) == 1)
    cmap = mpl.colormaps["viridis"].with_extremes(bad="#ededed")
    lowest = least if least > 0.5 * most else 0.0
    for axes, panel, amount in zip(grid.flat, panels, amounts, strict=True):
        image = axes.imshow(amount, cmap=cmap, vmin=lowest, vmax=most, interpolation="nearest")
        _matrix_axes(axes, table, panel)
        for line, set_ticks in ((axes.axhline, axes.set_yticks), (axes.axvline, axes.set_xticks)):
            _node_lines(line, len(amount), panel.result.devices_per_node, "white")
            set_ticks(device_ticks(len(amount), 8))
        axes.set_xlabel("destination device")
    grid[0, 0].set_ylabel("source device")
    _colorbar(figure, image, grid, f"{unit} per step", shrink=0.85)
    return figure


@_styled
def links_figure(table: Table) -> Figure:
    """How long every port of every device is busy per step, of two plans on one colour scale."""
    return draw_links(
        _two_plans(table), WIDTH_IN, lambda axes, panel, note: _panel_title(axes, table, panel.result, note)
    )


@_styled
def imbalance_figure(table: Table) -> Figure:
    """Load imbalance (most loaded rank over the mean) along the MoE layers, a line a plan."""
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    axes = figure.subplots()
    panels = distinct_plans(table, lambda result: result.layer_imbalance)
    styles = _line_styles(table, panels)
    marker = "o" if len(table.moe_layers) == 1 else None
    for panel, style in zip(panels, styles, strict=True):
        axes.plot(table.moe_layers, panel.result.layer_imbalance, marker=marker, ms=4, **style)
    axes.set_ylim(bottom=1)
    axes.margins(x=0.01)
    axes.set_xticks([table.moe_layers[place] for place in layer_ticks(table.moe_layers)])
    axes.grid(axis="y")
    axes.set_xlabel("MoE layer")
    axes.set_ylabel("tokens of the fullest rank / mean")
    _line_legend(figure, table, panels, styles)
    return figure


@_styled
def step_distribution_figure(table: Table) -> Figure:
    """Spread of the step times over the simulated steps, a box a plan: quartiles, median, and a line from p1 to p99."""
    results = table.results
    unit, length_s = time_unit(float(result.step_times_s.max()) for result in results)
    figure, axes = _plan_rows(results, extra_in=0.6)
    times = [result.step_times_s / length_s for result in results]
    first, last = min(float(t.min()) for t in times), max(float(t.max()) for t in times)
    width = (last - first) or 0.01 * last
    for row, values in enumerate(times):
        low, quarter, median, three_quarters, high = np.quantile(values, (0.01, 0.25, 0.5, 0.75, 0.99))
        axes.plot((low, high), (row, row), color=_INK, lw=0.8)
        axes.barh(row, three_quarters - quarter, left=quarter, height=0.5, color="#dfe6ef", edgecolor=_INK, lw=0.8)
        axes.plot((median, median), (row - 0.25, row + 0.25), color=_ACCENT, lw=1.8, solid_capstyle="butt")
        places = decimals(last)
        _end_label(axes, values.max() + 0.015 * width, row, f"{median:.{places}f}   p99 {high:.{places}f}")
    axes.set_xlim(first - 0.04 * width, last + 0.28 * width)
    axes.set_xlabel(f"time of a step ({unit}): quartiles, median and p1 to p99 of {min(map(len, times))} steps")
    axes.grid(axis="x")
    return figure


@_styled
def pipeline_figure(table: Table) -> Figure:
    """What the stages of two plans do in a step of median time, where plans are pipelines."""
    return draw_pipelines([(shown_name(result.name), result.stages) for result in _piped(table)], WIDTH_IN)


FIGURES: dict[str, Draw] = {
    "step-time": step_time_figure,
    "pipeline": pipeline_figure,
    "timeline": timeline_figure,
    "device-load": device_load_figure,
    "imbalance": imbalance_figure,
    "traffic": traffic_figure,
    "links": links_figure,
    "step-distribution": step_distribution_figure,
}


def figure_names(table: Table) -> list[str]:
    """Figures that have something to show: loads and traffic need several devices, a timeline a log."""
    is_spread = all(result.device_tokens.shape[0] >= 1 and len(result.traffic_bytes) >= 2 for result in table.results)
    hidden = set() if is_spread else {"device-load", "imbalance", "traffic", "links"}
    if not all(result.log for result in contrasted(table)):
        hidden.add("timeline")
    if not _piped(table):
        hidden.add("pipeline")
    return [name for name in FIGURES if name not in hidden]


def _piped(table: Table) -> list[RunResult]:
    return [result for result in contrasted(table) if result.stages]


def _two_plans(table: Table) -> list[Panel]:
    """The best plan and the one it is contrasted with, where their traffic differs."""
    two = distinct_plans(table, lambda result: result.traffic_bytes)
    wanted = {result.name for result in contrasted(table)}
    return [panel for panel in two if panel.result.name in wanted] or two[:1]


def _plan_rows(results: Sequence[RunResult], extra_in: float) -> tuple[Figure, Axes]:
    """A figure with one row a plan, best on top."""
    row_in = 0.34 if len(results) <= 12 else 0.24
    figure = Figure(figsize=(WIDTH_IN, row_in * len(results) + extra_in), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(results)), [_folded(result.name, 30) for result in results])
    axes.set_ylim(len(results) - 0.4, -0.5)
    axes.tick_params(axis="y", length=0, labelsize=7.5 if len(results) <= 12 else 6.5)
    axes.spines["left"].set_visible(False)
    return figure, axes


def _folded(name: str, width: int) -> str:
    """A plan's name on at most two lines, left out in the middle where it is longer: plans often differ at the end."""
    lines = textwrap.wrap(shown_name(name), width)
    return "\n".join(lines if len(lines) <= 2 else [lines[0], f"…{shown_name(name)[1 - width :]}"])


def _band_line(axes: Axes, result: RunResult, height: float, length_s: float) -> float:
    """A thin line from end to end of the step time's 80 % band; its right end, or 0 where there is no band."""
    if "step_time_s.low" not in result.metrics:
        return 0.0
    low, high = (result.metrics[f"step_time_s.{end}"] / length_s for end in ("low", "high"))
    axes.plot((low, high), (height, height), color=_INK, lw=0.9, marker="|", ms=4)
    return high


def _fill(kind: str) -> Style:
    """How an area of this kind is painted; waiting is light and hatched."""
    if kind == "waiting":
        return {"facecolor": kind_color(kind), "edgecolor": "#9a9a9a", "hatch": "//////", "linewidth": 0.0}
    return {"facecolor": kind_color(kind), "edgecolor": "white", "linewidth": 0.4}


def _label_segments(
    axes: Axes, left: NDArray[np.float64], width: NDArray[np.float64], longest: float, kind: str
) -> None:
    """Write the values of the segments that are wide enough for it."""
    red, green, blue = to_rgb(kind_color(kind))
    color = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else _INK
    for row in map(int, np.flatnonzero(width > 0.055 * longest)):
        text = f"{width[row]:.{decimals(longest, 3)}f}"
        axes.text(left[row] + width[row] / 2, row, text, ha="center", va="center", fontsize=6.5, color=color)


def _end_label(axes: Axes, x: float, row: int, text: str) -> None:
    axes.text(x, row, text, va="center", fontsize=7)


def _kind_legend(figure: Figure, kinds: Sequence[str]) -> None:
    handles = [Patch(**_fill(kind)) for kind in kinds]
    figure.legend(handles, list(kinds), loc="outside upper left", ncols=min(9, len(kinds)))


def _panel_title(axes: Axes, table: Table, result: RunResult, note: str) -> None:
    name, is_baseline = shown_name(result.name), result.name == table.first and len(table.results) > 1
    name = name if len(name) <= 36 else f"{name[:17]}…{name[-18:]}"
    axes.set_title(f"{name} (baseline)" if is_baseline else name)
    _corner_note(axes, note)


def _corner_note(axes: Axes, note: str) -> None:
    axes.set_title(note, loc="right", fontsize=7, fontweight="normal", color="#555555")


def _alike(panel: Panel) -> str:
    return f"and {panel.n_alike} {'plans' if panel.n_alike > 1 else 'plan'} alike" if panel.n_alike else ""


def _matrix_axes(axes: Axes, table: Table, panel: Panel) -> None:
    axes.spines[:].set_visible(False)
    _panel_title(axes, table, panel.result, "")


def _node_lines(line: Callable[..., Any], n_devices: int, devices_per_node: int, color: str) -> None:
    n_nodes = n_devices // devices_per_node
    for node in range(1, n_nodes):
        line(node * devices_per_node - 0.5, color=color, lw=0.9 if n_nodes <= 8 else 0.3)


def _colorbar(figure: Figure, image: Any, grid: Any, label: str, shrink: float) -> None:
    bar = figure.colorbar(image, ax=grid, label=label, aspect=22, pad=0.015, shrink=shrink)
    bar.ax.spines["outline"].set_visible(False)


def _line_styles(table: Table, panels: Sequence[Panel]) -> list[Style]:
    """Line of every plan: the baseline black and dashed, the best ones in colours, the rest grey behind them."""
    colors = iter(LINE_COLORS)
    styles: list[Style] = []
    for panel in panels:
        if panel.result.name == table.first:
            styles.append({"color": "black", "ls": "--", "lw": 1.1, "zorder": 4})
        elif (color := next(colors, None)) is not None:
            is_best = color == LINE_COLORS[0]
            styles.append({"color": color, "ls": "-", "lw": 1.8 if is_best else 1.1, "zorder": 5 if is_best else 3})
        else:
            styles.append({"color": _QUIET, "ls": "-", "lw": 0.7, "zorder": 2})
    return styles


def _line_legend(figure: Figure, table: Table, panels: Sequence[Panel], styles: Sequence[Style]) -> None:
    named = [(panel, style) for panel, style in zip(panels, styles, strict=True) if style["color"] != _QUIET]
    handles = [Line2D([], [], **style) for _, style in named]
    labels = []
    for panel, _ in named:
        label = _folded(panel.result.name, 26) + (" (baseline)" if panel.result.name == table.first else "")
        labels.append(f"{label}\n({_alike(panel)})" if panel.n_alike else label)
    if len(panels) > len(named):
        handles.append(Line2D([], [], color=_QUIET, lw=0.7))
        labels.append(f"{len(panels) - len(named)} other plans")
    if len(table.results) > 1:
        figure.legend(handles, labels, loc="outside right upper", handlelength=1.8)
