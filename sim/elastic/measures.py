"""What changes brought and cost: metrics of a load whose devices change."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scenarios.serving_specs import ServingSpec
from sim.serving.history import History
from sim.serving.loop import Served
from sim.serving.measures import met, moved_metrics

Window = tuple[float, float]


def elastic_metrics(served: Served, history: History, spec: ServingSpec) -> dict[str, float]:
    """Of all changes: how long, how much moved, how much memory; rates before, during and after; devices over time."""
    end_s = float(served.done_s.max())
    _, counts = history.device_counts(end_s)
    scalings = [change for change in history.changes if change.kind != "failure"]
    failures = [change for change in history.changes if change.kind == "failure"]
    metrics = {
        "n_scalings": float(len(scalings)),
        "downtime_s": float(sum(change.downtime_s for change in history.changes)),
        "lost_tokens": float(sum(change.lost_tokens for change in history.changes)),
        "n_unfinished": float(history.n_unfinished),
        "devices.mean": history.device_s(end_s) / end_s,
        "devices.peak": float(counts.max()),
    }
    if scalings:
        metrics["scale_s"] = float(np.mean([change.takes_s for change in scalings]))
        held = [max(change.peak_bytes.values(), default=0.0) for change in scalings]
        metrics["scale_memory_bytes.device"] = max(held)
        metrics["scale_memory_bytes.all"] = max(change.total_bytes for change in scalings)
    recovered = [change.takes_s for change in failures if not np.isnan(change.ready_s)]
    if recovered:
        metrics["recover_s"] = max(recovered)
    return metrics | moved_metrics(change.moved_bytes for change in history.changes) | _rates(served, history, spec)


def _rates(served: Served, history: History, spec: ServingSpec) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, window in windows(served, history, spec).items():
        metrics |= window_metrics(served, history, spec, name, window)
    return metrics


def windows(served: Served, history: History, spec: ServingSpec) -> dict[str, Window]:
    """Before, during and after changes; those of no length are left out."""
    end_s = float(served.done_s.max())
    if spec.scaling is not None and spec.scaling.window is not None:
        begin_s, ready_s = spec.scaling.window
    elif not history.changes:
        return {}
    else:
        begin_s = history.changes[0].at_s
        ready_s = max(end_s if np.isnan(change.ready_s) else change.ready_s for change in history.changes)
    times = [0.0, begin_s, min(ready_s, end_s), end_s]
    named = zip(("before", "during", "after"), times, times[1:], strict=False)
    return {name: (low, high) for name, low, high in named if high > low}


def window_metrics(served: Served, history: History, spec: ServingSpec, name: str, window: Window) -> dict[str, float]:
    """Tokens written in a window, and tokens of requests that ended in it within their limits, each a second."""
    low, high = window
    first = served.first_token_s
    written = history.written[_within(history.written_s, window)].sum() + _within(first, window).sum()
    metrics = {f"tokens_per_s.{name}": float(written) / (high - low)}
    if spec.slo is not None:
        good = met(served, spec.slo) & _within(served.done_s, window)
        metrics[f"goodput_tokens_per_s.{name}"] = float(served.requests.output_tokens[good].sum()) / (high - low)
    return metrics


def _within(times_s: NDArray[np.float64], window: Window) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (times_s > window[0]) & (times_s <= window[1])
    return inside
