"""What the interactive charts of a page show: lanes of a step, loads of devices, traffic and links, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.log import OpTimes
from sim.plot_data import gantt_devices, kind_color, kinds_in_order, relative_load
from sim.port_loads import DIRECTIONS
from sim.result import RunResult, Table
from sim.timeline import contrasted, lane_rows, middle_window, row_names
from sim.wording import shown_gain, shown_name

Array = NDArray[np.float64]
Chart = dict[str, Any]
INTERACTIVE = ("step-time", "timeline", "device-load", "traffic", "links")
"""Figures that a page shows as charts; the others are pictures."""

BARS = 12_000
"""Operations of a plan, over all its devices, that a browser still moves without a jerk."""
DEVICES = 32
MATRIX = 64
"""Devices up to which traffic is shown from device to device; of more, from node to node."""
_BAR_CHARS, _CELL_CHARS = 16, 6


def charts_of(table: Table, names: Iterable[str], budget_chars: int) -> Chart:
    """The charts `names` of a table, with as many plans as the budget allows: the best and its contrast, then by rank.

    `plans` are drawn; `of` tells for each of them which entry of a chart's `values` is its own.
    """
    wanted = [name for name in INTERACTIVE if name in names]
    plans = _affordable(table, budget_chars)
    chart: Chart = {"plans": [_label(table, result) for result in plans], "left_out": len(table.results) - len(plans)}
    chart |= {"shown": [plans.index(result) for result in contrasted(table)]}
    return chart | {name: CHARTS[name](table, plans) for name in wanted}


def _label(table: Table, result: RunResult) -> str:
    is_baseline = result.name == table.first and len(table.results) > 1
    return shown_name(result.name) + " (baseline)" * is_baseline


def _affordable(table: Table, budget_chars: int) -> list[RunResult]:
    """Plans to draw, in the order of the table."""
    first = contrasted(table)
    kept: list[str] = []
    left = budget_chars
    for result in [*first, *(other for other in table.results if all(other is not one for one in first))]:
        left -= _size(result)
        if left < 0 and len(kept) >= len(first):
            break
        kept.append(result.name)
    return [result for result in table.results if result.name in kept]


def _size(result: RunResult) -> int:
    """About how many letters the charts of a plan take."""
    n_bars = min(BARS, len(result.log) * min(DEVICES, len(result.traffic_bytes)))
    n_cells = (
        2 * (result.device_tokens.size + result.expert_loads.copies.size)
        + min(result.traffic_bytes.size, MATRIX**2)
        + 2 * len(result.traffic_bytes)
    )
    return n_bars * _BAR_CHARS + n_cells * _CELL_CHARS


def step_time_chart(table: Table, _: Sequence[RunResult]) -> Chart:
    """Mean step time of a device by cause [s], of every plan of the table, and the ends of its 80 % band."""
    results = table.results
    kinds = kinds_in_order(kind for result in results for kind in result.breakdown_s)
    ends = [[result.metrics.get(f"step_time_s.{end}") for end in ("low", "high")] for result in results]
    gains = ["baseline" if result.name == table.first else shown_gain(table, result) for result in results]
    return {
        "names": [shown_name(result.name) for result in results],
        "kinds": [[kind, kind_color(kind)] for kind in kinds],
        "values": [_significant(np.array([r.breakdown_s.get(kind, 0.0) for kind in kinds])) for r in results],
        "totals": [sum(result.breakdown_s.values()) for result in results],
        "bands": [None if None in band else band for band in ends],
        "gains": gains if len(results) > 1 else [""],
    }


def timeline_chart(_: Table, plans: Sequence[RunResult]) -> Chart:
    """Lanes of the logged step of every plan, times in nanoseconds since its first device began."""
    kinds = kinds_in_order({"waiting", *(op.work.kind for result in plans for op in result.log)})
    values = [_lanes(result, kinds) for result in plans]
    return {"kinds": [[kind, kind_color(kind)] for kind in kinds], "values": values, "of": list(range(len(plans)))}


def _lanes(result: RunResult, kinds: Sequence[str]) -> Chart:
    """Operations [kind, layer, chunk, row] of a plan, and of each device [begin, busy, waiting] of all of them."""
    log, rows, window = result.log, lane_rows(result.log), middle_window(result.log)
    devices = gantt_devices(result, window, max(1, min(DEVICES, BARS // len(log))))
    from_s = min(float(op.begin_s.min()) for op in log)
    return {
        "step": result.logged_step,
        "devices": devices,
        "n_devices": len(log[0].begin_s),
        "rows": [name for _, name in sorted(row_names(log, rows).items())],
        "window": [_ns(window.begin_s - from_s), _ns(window.end_s - from_s)],
        "layers": list(window.layers),
        "ops": [_op(op, kinds, place) for op, place in zip(log, _places(rows), strict=True)],
        "times": [_device_times(log, device, from_s) for device in devices],
        "bytes": {
            index: np.rint(op.moved_bytes[:, devices]).astype(np.int64).tolist()
            for index, op in enumerate(log)
            if op.moved_bytes is not None
        },
    }


def _places(rows: Sequence[int]) -> list[int]:
    """Rows numbered without gaps: a log may leave out the row of computing."""
    place = {row: index for index, row in enumerate(sorted(set(rows)))}
    return [place[row] for row in rows]


def _op(op: OpTimes, kinds: Sequence[str], row: int) -> list[int]:
    return [kinds.index(op.work.kind), op.work.layer, op.work.chunk, row]


def _device_times(log: Sequence[OpTimes], device: int, from_s: float) -> list[list[int]]:
    """[begin], [busy] and [waiting] of every operation [ns]; waiting of less than 0.1 % of an operation is left out."""
    begin, busy, end = (np.array([getattr(op, name)[device] for op in log]) for name in ("begin_s", "busy_s", "end_s"))
    waiting = end - begin - busy
    waiting[waiting < 1e-3 * (end - begin)] = 0.0
    return [np.rint(times * 1e9).astype(np.int64).tolist() for times in (begin - from_s, busy, waiting)]


def _ns(time_s: float) -> int:
    return round(time_s * 1e9)


def load_chart(table: Table, plans: Sequence[RunResult]) -> Chart:
    """Tokens over the layer's mean and distinct experts with a token, [device][MoE layer]; and of the experts."""
    values, of = _distinct(plans, _loads)
    return {
        "layers": list(table.moe_layers),
        "per_node": [result.devices_per_node for result in plans],
        "of": of,
        "values": [
            {
                "share": _rounded(relative_load(tokens).T, 3),
                "experts": _rounded(experts.T, 2),
                "mean": _significant(tokens.mean(axis=1)),
                "fullest": _rounded(fullest.T, 3),
                "copies": _rounded(copies.T, 0),
            }
            for tokens, experts, fullest, copies in values
        ],
    }


def _loads(result: RunResult) -> tuple[Array, ...]:
    experts = result.expert_loads
    return result.device_tokens, result.device_experts, experts.fullest_share, experts.copies.astype(np.float64)


def traffic_chart(_: Table, plans: Sequence[RunResult]) -> Chart:
    """Bytes of a step [source][destination], between devices or, where these are many, between nodes."""
    values, of = _distinct(plans, lambda result: (_between(result),))
    by_node = [len(result.traffic_bytes) > MATRIX for result in plans]
    per_node = [1 if nodes else result.devices_per_node for nodes, result in zip(by_node, plans, strict=True)]
    return {"of": of, "by_node": by_node, "per_node": per_node, "values": [_significant(moved) for (moved,) in values]}


def _between(result: RunResult) -> Array:
    """Traffic matrix to draw; devices that are the same send each other nothing that travels."""
    moved, n = result.traffic_bytes, result.devices_per_node
    if len(moved) <= MATRIX:
        return moved * (1 - np.eye(len(moved)))
    nodes = len(moved) // n
    by_node: Array = (moved * (1 - np.eye(len(moved)))).reshape(nodes, n, nodes, n).sum(axis=(1, 3))
    return by_node


def links_chart(_: Table, plans: Sequence[RunResult]) -> Chart:
    """Bytes and busy time of a step at every port, [link and direction][device]."""
    values, of = _distinct(plans, lambda result: (result.port_loads.busy_s, result.port_loads.moved_bytes))
    ports = [
        [f"{link} {direction}" for link in result.port_loads.links for direction in DIRECTIONS] for result in plans
    ]
    per_node = [result.devices_per_node for result in plans]
    flat = [[part.reshape(-1, part.shape[-1]) for part in parts] for parts in values]
    shown = [{"busy_s": _significant(busy), "bytes": _significant(moved)} for busy, moved in flat]
    return {"of": of, "ports": ports, "per_node": per_node, "values": shown}


CHARTS: dict[str, Callable[[Table, Sequence[RunResult]], Chart]] = {
    "step-time": step_time_chart,
    "timeline": timeline_chart,
    "device-load": load_chart,
    "traffic": traffic_chart,
    "links": links_chart,
}


def _distinct(
    plans: Sequence[RunResult], values: Callable[[RunResult], tuple[Array, ...]]
) -> tuple[list[tuple[Array, ...]], list[int]]:
    """The values of plans, each once, and which of them a plan has: schedules of one placement have equal loads."""
    found: list[tuple[Array, ...]] = []
    of: list[int] = []
    for result in plans:
        own = values(result)
        alike = (i for i, other in enumerate(found) if all(map(np.array_equal, own, other)))
        place = next(alike, len(found))
        found[place : place + 1] = [own]
        of.append(place)
    return found, of


def _rounded(values: Array, decimals: int) -> list[Any]:
    rounded: list[Any] = (np.round(values, decimals) if decimals else values.astype(np.int64)).tolist()
    return rounded


def _significant(values: Array, digits: int = 4) -> list[Any]:
    """Nested lists of values with so many digits."""
    if values.ndim > 1:
        return [_significant(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") for value in values]
