"""What the figures show, before anything is drawn: which plans, devices and layers, and where bars lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.result import RunResult, Table
from sim.timeline import Window, lane_rows
from sim.training import plain_kind
from sim.wording import baseline

Array = NDArray[np.float64]

# Paul Tol's bright and muted schemes, distinct under the common colour blindnesses. In the order of a layer.
KIND_COLORS = {
    "attention": "#4477aa",
    "projections": "#99bbdd",
    "core": "#335588",
    "mlp": "#66ccee",
    "gate": "#aa3377",
    "shared": "#ccbb44",
    "experts": "#ee6677",
    "resident": "#dd4466",
    "device core": "#225577",
    "pim core": "#77bbcc",
    "pim experts": "#aa2211",
    "coming": "#cc3311",
    "loaded": "#994455",
    "load": "#ee9944",
    "ahead": "#ffdd88",
    "hosted": "#777755",
    "deferred": "#aaaa88",
    "prompt": "#6688bb",
    "output": "#77aadd",
    "page": "#ddaa33",
    "queries": "#99cc99",
    "results": "#44aa77",
    "cache": "#bb5566",
    "store": "#ddaabb",
    "head": "#332288",
    "gather": "#999933",
    "scatter": "#ddcc77",
    "dispatch": "#228833",
    "combine": "#88bb77",
    "regroup": "#117733",
    "forward": "#44aa99",
    "collect": "#661100",
    "reduce": "#222255",
    "reduce.experts": "#663333",
    "reduce.head": "#225555",
    "fill": "#444488",
    "transfer": "#228833",
    "pim": "#bb6644",
    "waiting": "#e3e3e3",
    "host": "#777777",
}
_SPARE_COLORS = ("#882255", "#44aa99", "#cc6677", "#88ccee", "#661100")
_NOT_WORK = ("transfer", "pim", "waiting", "host")
GANTT_DEVICES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A plan to draw, and how many other plans would look the same."""

    result: RunResult
    n_alike: int


def distinct_plans(table: Table, values: Callable[[RunResult], Array], limit: int | None = None) -> list[Panel]:
    """Plans that differ in `values`, best first; with `limit` the best ones, and always the baseline.

    Schedules that share a placement have equal loads; the baseline stands for those that are like it.
    """
    groups: list[list[RunResult]] = []
    for result in table.results:
        alike = next((group for group in groups if np.array_equal(values(group[0]), values(result))), None)
        if alike is None:
            groups.append([result])
        else:
            alike.append(result)
    first = baseline(table)
    panels = [Panel(result=first if first in group else group[0], n_alike=len(group) - 1) for group in groups]
    if limit is None or len(panels) <= limit:
        return panels
    kept = panels[:limit]
    if not any(panel.result is first for panel in kept):
        kept[-1] = next(panel for panel in panels if panel.result is first)
    return kept


def kinds_in_order(present: Iterable[str]) -> list[str]:
    """Kinds of work in the order of a layer, then unknown ones by name, then what is not work."""
    known = {kind: place for place, kind in enumerate(KIND_COLORS)}
    return sorted(set(present), key=lambda kind: (kind in _NOT_WORK, known.get(plain_kind(kind), len(known)), kind))


def kind_color(kind: str) -> str:
    """Colour of a kind of work, the same in every figure; a backward pass has the colours of its forward pass."""
    kind = kind if kind in KIND_COLORS else plain_kind(kind)
    return KIND_COLORS.get(kind, _SPARE_COLORS[sum(kind.encode()) % len(_SPARE_COLORS)])


def relative_load(tokens: Array) -> Array:
    """Tokens over the mean of the devices, float64[layer, device]; 1 where a layer has no token."""
    mean = tokens.mean(axis=1, keepdims=True)
    shares: Array = np.divide(tokens, mean, out=np.ones_like(tokens), where=mean > 0)
    return shares


def layer_ticks(moe_layers: Sequence[int]) -> list[int]:
    """Positions in `moe_layers` that hold round layer numbers, at most 20."""
    every = next((step for step in (1, 2, 5, 10, 20, 50) if len(moe_layers) <= 20 * step), 100)
    return [place for place, layer in enumerate(moe_layers) if layer % every == 0] or [0]


def device_ticks(n_devices: int, limit: int) -> list[int]:
    """At most `limit` device numbers, a power of two apart."""
    every = next(2**power for power in range(32) if n_devices <= limit * 2**power)
    return list(range(0, n_devices, every))


def gantt_devices(result: RunResult, window: Window, limit: int = GANTT_DEVICES) -> list[int]:
    """All devices, or `limit` of them: evenly spread, among them the one that works longest in the window."""
    n_devices = len(result.log[0].begin_s)
    if n_devices <= limit:
        return list(range(n_devices))
    inside = [op.busy_s for op in result.log if not window.layers or op.work.layer in window.layers]
    busiest = int(np.argmax(np.sum(inside, axis=0)))
    spread = np.linspace(0, n_devices - 1, limit).round().astype(np.int64)
    spread[np.argmin(np.abs(spread - busiest))] = busiest
    return [int(device) for device in spread]


def gantt_boxes(result: RunResult, window: Window, devices: Sequence[int]) -> dict[str, list[Array]]:
    """Corners float64[4, 2] of the bars in a window, by kind; x in seconds from its begin, y in places of `devices`.

    A device has a thin row for computing and one for each row of exchanges below it. Time spent waiting for others at
    the end of an operation is of kind `waiting`.
    """
    rows = lane_rows(result.log)
    height = 0.86 / (max(rows) + 1)
    boxes: dict[str, list[Array]] = {}
    for op, row in zip(result.log, rows, strict=True):
        if op.end_s.max() <= window.begin_s or op.begin_s.min() >= window.end_s:
            continue
        times_s = np.stack([op.begin_s, op.begin_s + op.busy_s, op.end_s])[:, devices] - window.begin_s
        for place, (begin_s, done_s, end_s) in enumerate(times_s.T):
            top = place - 0.43 + row * height
            boxes.setdefault(op.work.kind, []).append(_box(begin_s, done_s, top, height))
            if end_s - done_s > 1e-3 * (end_s - begin_s):
                boxes.setdefault("waiting", []).append(_box(done_s, end_s, top, height))
    return boxes


def _box(left: float, right: float, top: float, height: float) -> Array:
    bottom = top + 0.94 * height
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
