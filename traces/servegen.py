"""Requests drawn from the clients of ServeGen (Alibaba, arXiv 2505.09999; github.com/alibaba/ServeGen, Apache-2.0).

A folder holds two files a client: `chunk-3-trace.csv`, a row a window of time (its begin [s], requests/s, deviation
over mean of the gaps, Gamma or Weibull, shape and scale of the gaps), and `chunk-3-dataset.json`, distributions of
lengths by the begin of longer windows, {"0": {"input_tokens": "{224: 0.25, 225: 0.75}", "output_tokens": ...}}.
"""

from __future__ import annotations

import ast
import csv
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import gamma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError

CLIENTS = "chunk-*"
"""Files of a folder of clients."""
Times = NDArray[np.float64]
Counts = NDArray[np.int64]
Lengths = tuple[Counts, Times]
"""Lengths and the probability of each."""


@dataclass(frozen=True, slots=True)
class _Window:
    """Requests of one client in a stretch of time; `shape` of the distribution of their gaps, None: exponential."""

    begin_s: float
    requests_per_s: float
    pattern: str
    shape: float | None


@dataclass(frozen=True, slots=True)
class _Client:
    windows: list[_Window]
    begins_s: list[float]
    inputs: list[Lengths]
    outputs: list[Lengths]


def drawn_requests(folder: Path, most: int, rng: np.random.Generator) -> tuple[Times, Counts, Counts]:
    """Arrivals [s] of up to `most` requests of all clients, ascending, with input and output tokens, each [request].

    Windows are drawn one after another until there are enough. Gaps have the shape of the window's distribution and the
    mean that its rate asks for. Raises TraceError where the folder holds no client, or one that cannot be read.
    """
    clients = [_client(path) for path in sorted(folder.glob("chunk-*-trace.csv"))]
    begins_s = sorted({window.begin_s for client in clients for window in client.windows})
    if not clients or len(begins_s) < 2:
        raise TraceError(f"{folder}: holds no clients of ServeGen (chunk-0-trace.csv of several windows)")
    parts, n = [], 0
    for begin_s, end_s in pairwise(begins_s):
        drawn = np.concatenate([_drawn(client, begin_s, end_s, rng) for client in clients], axis=1)
        parts.append(drawn[:, np.argsort(drawn[0], kind="stable")])
        n += drawn.shape[1]
        if n >= most:
            break
    arrival_s, inputs, outputs = np.concatenate(parts, axis=1)[:, :most]
    return arrival_s, inputs.astype(np.int64), outputs.astype(np.int64)


def _drawn(client: _Client, begin_s: float, end_s: float, rng: np.random.Generator) -> Times:
    """Arrivals, input and output tokens of a client in a window, float64[3, request]."""
    window = next((one for one in client.windows if one.begin_s == begin_s), None)
    if window is None or window.requests_per_s <= 0:
        return np.empty((3, 0))
    times_s = begin_s + np.fromiter(_gaps_to(window, end_s - begin_s, rng), np.float64)
    at = max(bisect_right(client.begins_s, begin_s) - 1, 0)
    lengths = [rng.choice(values, len(times_s), p=shares) for values, shares in (client.inputs[at], client.outputs[at])]
    return np.stack([times_s, *lengths])


def _gaps_to(window: _Window, length_s: float, rng: np.random.Generator) -> Iterator[float]:
    """Times within the window, a renewal process."""
    mean_s, now = 1 / window.requests_per_s, 0.0
    while True:
        if window.shape is None:
            now += rng.exponential(mean_s)
        elif window.pattern == "Gamma":
            now += rng.gamma(window.shape, mean_s / window.shape)
        else:
            now += mean_s / gamma(1 + 1 / window.shape) * rng.weibull(window.shape)
        if now >= length_s:
            return
        yield now


def _client(path: Path) -> _Client:
    data = path.with_name(path.name.replace("-trace.csv", "-dataset.json"))
    try:
        with path.open(encoding="utf-8", newline="") as file:
            windows = [_window(row) for row in csv.reader(file) if row]
        lengths = {float(begin): both for begin, both in json.loads(data.read_text(encoding="utf-8")).items()}
        begins_s = sorted(lengths)
        inputs, outputs = (
            [_lengths(lengths[begin][name]) for begin in begins_s] for name in ("input_tokens", "output_tokens")
        )
    except (OSError, csv.Error, ValueError, KeyError, IndexError, SyntaxError, TypeError, AttributeError) as error:
        raise TraceError(f"{path}: no client of ServeGen with {data.name} ({type(error).__name__}: {error})") from None
    if not begins_s:
        raise TraceError(f"{data}: has no lengths")
    return _Client(windows, begins_s, inputs, outputs)


def _window(row: list[str]) -> _Window:
    begin, rate, _, pattern, shape, *_ = row
    if pattern not in ("", "Gamma", "Weibull"):
        raise ValueError(f"gaps are Gamma or Weibull, not {pattern}")
    return _Window(float(begin), float(rate), pattern, float(shape) if pattern and float(shape) > 0 else None)


def _lengths(text: str) -> Lengths:
    """A distribution, written as a dictionary; an answer has one token at least."""
    shares = ast.literal_eval(text)
    values = np.maximum(np.array(list(shares), np.int64), 1)
    weights = np.array(list(shares.values()), np.float64)
    return values, weights / weights.sum()
