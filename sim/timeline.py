"""The logged step as a timeline: rows of overlapping operations, a window to look at, and Chrome trace events."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.log import OpTimes
from sim.program import Work
from sim.result import Comparison, RunResult, Table
from sim.training import BACKWARD
from sim.wording import baseline, shown_name

Event = dict[str, Any]
AHEAD = frozenset({"fetch", "ahead", "page", "dense page", "attention page"})
"""Kinds of copies of weights that come during the layer before their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of a step, in seconds, around the works of some `layers`."""

    layers: tuple[int, ...]
    begin_s: float
    end_s: float


def lane_rows(log: Sequence[OpTimes]) -> list[int]:
    """Row of every operation: 0 computes; others take the first row of their lane that is free on every device.

    Exchanges of two chunks can overlap: one still receives while the next one sends.
    """
    rows: list[int] = []
    taken: list[tuple[str, NDArray[np.float64]]] = [("compute", np.full(1, -np.inf))]
    for op in log:
        fits = (i for i, (lane, free) in enumerate(taken) if lane == op.lane and (i == 0 or (free <= op.begin_s).all()))
        row = next(fits, len(taken))
        taken[row : row + 1] = [(op.lane, op.end_s)]
        rows.append(row)
    return rows


def middle_window(log: Sequence[OpTimes], n_layers: int = 2) -> Window:
    """Window over `n_layers` MoE layers in the middle of a step, or of its backward pass; over all where it has none.

    Weights that are copied ahead of their layer do not count: they travel during the one before.
    """
    moe_layers = sorted({op.work.layer for op in log if op.work.kind in ("experts", "local", "resident")})
    first = max(0, (len(moe_layers) - n_layers) // 2)
    layers = tuple(moe_layers[first : first + n_layers])
    own = [op for op in log if op.work.layer in layers and op.work.kind not in AHEAD]
    inside = [op for op in own if op.work.kind.endswith(BACKWARD)] or own or list(log)
    return Window(
        layers=layers,
        begin_s=float(min(op.begin_s.min() for op in inside)),
        end_s=float(max(op.end_s.max() for op in inside)),
    )


def contrasted(table: Table) -> tuple[RunResult, ...]:
    """The best plan and the baseline, or the second best where the best one is the baseline itself."""
    best, first = table.results[0], baseline(table)
    return table.results[:2] if best is first else (best, first)


def trace_events(comparison: Comparison) -> Iterator[Event]:
    """Chrome trace events of the logged step of the two contrasted plans of every table.

    A process is a device of a plan, a thread one row of it: compute, exchange, and further exchanges that overlap it.
    Times are in microseconds, on a grid of nanoseconds, so that rounding lets no two events of a thread overlap.
    """
    first_pid = 0
    for table in comparison.tables:
        prefix = f"{shown_name(table.title)}: " if len(comparison.tables) > 1 else ""
        for result in contrasted(table):
            n_devices = len(result.log[0].begin_s) if result.log else 0
            yield from _plan_events(result, f"{prefix}{shown_name(result.name)}", first_pid)
            first_pid += n_devices


def write_trace(comparison: Comparison, path: Path) -> None:
    """Write the events as gzipped Chrome trace JSON, for ui.perfetto.dev; the same events give the same bytes."""
    head = {"displayTimeUnit": "ns", "otherData": {"scenario": comparison.scenario}}
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(json.dumps(head)[:-1].encode() + b', "traceEvents": [')
        for index, event in enumerate(trace_events(comparison)):
            packed.write((",\n" if index else "\n").encode() + json.dumps(event).encode())
        packed.write(b"\n]}\n")


def _plan_events(result: RunResult, name: str, first_pid: int) -> Iterator[Event]:
    log, rows = result.log, lane_rows(result.log)
    begins_ns, ends_ns = _on_grid(log, rows)
    names = row_names(log, rows)
    for device in range(len(log[0].begin_s) if log else 0):
        pid = first_pid + device
        yield _metadata("process_name", pid, 0, name=f"{name}, device {device}")
        yield _metadata("process_sort_index", pid, 0, sort_index=pid)
        for row in sorted(set(rows)):
            yield _metadata("thread_name", pid, row, name=names[row])
            yield _metadata("thread_sort_index", pid, row, sort_index=row)
        for index, op in enumerate(log):
            begin_ns, end_ns = int(begins_ns[index][device]), int(ends_ns[index][device])
            waiting_s = op.end_s[device] - op.begin_s[device] - op.busy_s[device]
            yield {
                "name": work_name(op.work),
                "cat": op.lane,
                "ph": "X",
                "pid": pid,
                "tid": rows[index],
                "ts": _microseconds(begin_ns),
                "dur": (end_ns - begin_ns) / 1000,
                "args": {"chunk": op.work.chunk, "waiting_us": round(max(float(waiting_s), 0.0) * 1e6, 3)},
            }


def _microseconds(time_ns: int) -> float:
    """Readers truncate to nanoseconds: a tenth more keeps 1.001 us from becoming 1000 ns and overlapping."""
    return round((time_ns + 0.1) / 1000, 4)


def work_name(work: Work) -> str:
    """Kind and layer of a work: `experts 5`."""
    return work.kind if work.layer < 0 else f"{work.kind} {work.layer}"


def row_names(log: Sequence[OpTimes], rows: Sequence[int]) -> dict[int, str]:
    """Name of every row: its lane, with a number where the lane has several."""
    lanes = {row: op.lane for op, row in zip(log, rows, strict=True)}
    found: dict[int, str] = {}
    for row in sorted(lanes):
        earlier = sum(lanes[other] == lanes[row] for other in found)
        found[row] = f"{lanes[row]}, overlapping {earlier + 1}" if earlier else lanes[row]
    return found


def _on_grid(log: Sequence[OpTimes], rows: Sequence[int]) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Begins and ends in whole nanoseconds; no operation begins before its predecessor in the same row ends."""
    free_ns: dict[int, NDArray[np.int64]] = {}
    begins, ends = [], []
    for op, row in zip(log, rows, strict=True):
        begin_ns = np.rint(op.begin_s * 1e9).astype(np.int64)
        if row in free_ns:
            begin_ns = np.maximum(begin_ns, free_ns[row])
        end_ns = np.maximum(np.rint(op.end_s * 1e9).astype(np.int64), begin_ns)
        free_ns[row] = end_ns
        begins.append(begin_ns)
        ends.append(end_ns)
    return begins, ends


def _metadata(kind: str, pid: int, tid: int, **args: Any) -> Event:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args}
