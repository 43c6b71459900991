"""The tables of a kernel card made into surfaces: which rows count, their shapes and coordinates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.attention_rows import attention_rows
from hwmodels.calibration.calibrate import main_kernels, problems_of
from hwmodels.calibration.problem import Problem
from hwmodels.devices import Device
from hwmodels.measured_tables import (
    Measured,
    MeasuredBlock,
    Shape,
    Surface,
    Times,
    band_left_out,
    gemm_shape,
    head_key,
    latent_key,
    log_of,
    moe_shape,
    surface_of,
    uneven,
)
from hwmodels.validation.counts import expert_counts
from hwmodels.validation.timings import Timings, read_timings
from scenarios.errors import HardwareError

LATENT_DIMS = (576, 512)  # of a cached token and of its latent: the tables are of DeepSeek-V3's MLA
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """Where rows lie: shapes[row], line and point float64[row]; `kept` says which of the rows given have a place."""

    shapes: list[Shape]
    line: Times
    point: Times
    kept: NDArray[np.bool_]


def measure(device: Device) -> Device:
    """The device with what the tables of its kernel card hold.

    Rows that a calibration leaves out count here neither, for the same reasons; of several kernels for one data type
    the one with most rows counts. Raises HardwareError where a file is missing or wrong, or holds no row for its
    operation.
    """
    tables = device.kernels.tables()
    paths = sorted({path.resolve() for paths in tables.values() for path in paths if path.is_file()})
    files = [(path, path.stat().st_mtime_ns) for path in paths]
    known = (device.card.model_dump_json(), *(card.model_dump_json() for card in device.kernels.cards), *files)
    if known not in _READ:
        _READ[known] = Measured(blocks=_read_blocks(device))
    return replace(device, measured=_READ[known])


_READ: dict[tuple[object, ...], Measured] = {}
"""Tables already read, by cards, files and times of change: the settings of a comparison share them."""


def _read_blocks(device: Device) -> dict[tuple[str, str], MeasuredBlock]:
    found: dict[tuple[str, str], list[tuple[Path, Problem, Timings]]] = {}
    for block, paths in device.kernels.tables().items():
        for path in paths:
            timings = _read(path, block)
            for problem in _problems(timings, device, block):
                found.setdefault((block, problem.dtype), []).append((path, problem, timings))
    return {key: _joined(parts, device) for key, parts in found.items()}


def _joined(parts: list[tuple[Path, Problem, Timings]], device: Device) -> MeasuredBlock:
    """Surfaces of one operation and data type through the rows of several files."""
    rows_of: dict[Shape, list[NDArray[np.float64]]] = {}
    for _, problem, timings in parts:
        for shape, rows in corrections(problem, timings, device).items():
            rows_of.setdefault(shape, []).append(rows)
    if not rows_of:
        path, problem, _ = parts[0]
        raise HardwareError(
            f"{path}: all rows of {problem.block} {problem.dtype} are of prefill behind a window, the law's alone"
        )
    joined = {shape: np.concatenate(rows, axis=1) for shape, rows in rows_of.items()}
    surfaces = {shape: surface_of(*rows) for shape, rows in joined.items()}
    return MeasuredBlock(
        files=tuple(path.name for path, _, _ in parts),
        n_rows=sum(rows.shape[1] for rows in joined.values()),
        surfaces=surfaces,
        band=band_left_out(surfaces.values()),
    )


def surfaces_of(problem: Problem, timings: Timings, device: Device) -> dict[Shape, Surface]:
    """The surfaces of one problem by shape."""
    return {shape: surface_of(*rows) for shape, rows in corrections(problem, timings, device).items()}


def corrections(problem: Problem, timings: Timings, device: Device) -> dict[Shape, NDArray[np.float64]]:
    """Of each shape the rows as points: float64[line, point and log(measured / law); row]."""
    law_s = problem.law(device.kernels.find(problem.block, problem.dtype), np.arange(len(problem.rows)))
    logs = np.log(problem.measured_s / law_s)
    found = COORDINATES[problem.block](timings.rows(problem.rows))
    table = np.stack([found.line, found.point, logs])
    shapes, number = np.unique(np.array(found.shapes), axis=0, return_inverse=True)
    number = number.ravel()
    by_shape = {}
    for place, shape in enumerate(shapes.tolist()):
        rows = np.flatnonzero((number == place) & found.kept)
        if len(rows):
            by_shape[tuple(shape)] = table[:, rows]
    return by_shape


def _read(path: Path, block: str) -> Timings:
    timings = read_timings(path)
    if timings.family != FAMILY_OF[block]:
        remedy = f"`tables: {{{block}: FILE}}` needs the columns of family {FAMILY_OF[block]}"
        raise HardwareError(f"{path}: holds timings of {timings.family}; {remedy}")
    return timings


def _problems(timings: Timings, device: Device, block: str) -> list[Problem]:
    problems, reasons = problems_of(timings, device)
    problems = [p for p in main_kernels(problems, timings, reasons) if p.block == block]
    if problems:
        return problems
    counted = Counter(reason for reason in reasons.tolist() if reason)
    why = "; ".join(f"{count:,} rows: {reason}" for reason, count in counted.most_common(3))
    remedy = f"measure {block} with it or take the file from `tables:`"
    raise HardwareError(
        f"{timings.path}: no row is of use for {block} ({why or 'none is of this operation'}); {remedy}"
    )


def _moe(timings: Timings) -> Coordinates:
    """Of one shape and number of slots, rows of one kind: of one rank before others, balanced before skewed."""
    names = ("hidden_size", "inter_size", "moe_tp_size", "num_experts", "moe_ep_size", "topk", "num_tokens")
    hidden, inter, tp, experts, ranks, top_k, tokens = (timings.ints(name) for name in names)
    kinds = timings.texts("distribution")
    cases = zip(kinds.tolist(), *(c.tolist() for c in (tokens, top_k, experts, ranks)), strict=True)
    routed = np.array([expert_counts(*case).sum(axis=1).mean() for case in cases])
    slots = experts // ranks
    where = np.stack([hidden, inter // tp, slots], axis=1)
    what = np.stack([ranks > 1, kinds != "balanced", ranks, tp, top_k, experts], axis=1)
    kept = np.zeros(len(timings), dtype=bool)
    number = np.unique(where, axis=0, return_inverse=True)[1].ravel()
    for place in range(int(number.max(initial=-1)) + 1):
        rows = np.flatnonzero(number == place)
        best = min(what[rows].tolist())
        kept[rows] = (what[rows] == best).all(axis=1)
    return Coordinates(
        shapes=[moe_shape(h, i, True) for h, i, _ in where.tolist()],
        line=log_of(slots),
        point=log_of(routed / slots),
        kept=kept,
    )


def _gemm(timings: Timings) -> Coordinates:
    n, k = timings.ints("n").tolist(), timings.ints("k").tolist()
    every = np.ones(len(timings), dtype=bool)
    shapes = [gemm_shape(*size) for size in zip(n, k, strict=True)]
    return Coordinates(shapes=shapes, line=uneven(timings.ints("m")), point=log_of(timings.ints("m")), kept=every)


def _attention(timings: Timings) -> Coordinates:
    """Contexts of decode, lengths of prefill; prefill behind a window is the law's alone.

    Where a window clips contexts of decode, all of them end at it: one point a line, averaged over them. Where it clips
    none, the row is left to those measured without a window.
    """
    rows = attention_rows(timings)
    lengths = np.where(rows.decode, rows.attended, rows.queries) / rows.requests
    if rows.latent:
        shapes = [latent_key(heads, *LATENT_DIMS) for heads in rows.heads.tolist()]
    else:
        sizes = (rows.heads, rows.kv_heads, rows.head_dim, rows.window)
        shapes = [head_key(*size) for size in zip(*(size.tolist() for size in sizes), strict=True)]
    windowed, clips = _has_window(timings), np.isfinite(rows.window)
    kept = ~windowed | (clips & rows.decode)
    return Coordinates(shapes=shapes, line=log_of(rows.requests), point=log_of(lengths), kept=kept)


def _has_window(timings: Timings) -> NDArray[np.bool_]:
    """Whether a row was measured behind a sliding window, clipped or not: bool[row]."""
    if "window_size" not in timings.columns:
        return np.zeros(len(timings), dtype=bool)
    return timings.ints("window_size") > 0


COORDINATES: dict[str, Callable[[Timings], Coordinates]] = {
    "moe": _moe,
    "gemm": _gemm,
    "prefill": _attention,
    "decode": _attention,
    "mla_prefill": _attention,
    "mla_decode": _attention,
}
FAMILY_OF = {
    "moe": "moe",
    "gemm": "gemm",
    "prefill": "attention",
    "decode": "attention",
    "mla_prefill": "mla",
    "mla_decode": "mla",
}
"""Operation -> family of tables that hold it."""
