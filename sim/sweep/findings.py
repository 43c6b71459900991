"""What the points of a sweep show: a ranking, the effect of every axis, the front of speed against throughput."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.result import is_cost
from sim.sweep.store import Result

THROUGHPUT = "tokens_per_s_per_device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one axis does to a metric: geometric means by value, over all points that have it."""

    path: str
    means: dict[str, float]

    @property
    def span(self) -> float:
        """Largest mean over the smallest, minus one."""
        return max(self.means.values()) / min(self.means.values()) - 1 if min(self.means.values()) > 0 else np.inf


def done(results: Sequence[Result]) -> list[Result]:
    """Points that could be simulated."""
    return [result for result in results if "metrics" in result]


def ranked(results: Sequence[Result], metric: str) -> list[Result]:
    """Points that have the metric, the best first: rates and shares high, times, bytes and errors low."""
    having = [result for result in done(results) if metric in result["metrics"]]
    sign = 1 if is_cost(metric) else -1
    return sorted(having, key=lambda result: sign * result["metrics"][metric])


def effects(results: Sequence[Result], metric: str) -> list[Effect]:
    """The effect of every axis on a metric, the largest first; of positive values alone."""
    having = [result for result in done(results) if result["metrics"].get(metric, 0) > 0]
    if not having:
        return []
    found = []
    for path in having[0]["point"]:
        values = dict.fromkeys(result["point"][path] for result in having)
        means = {
            value: float(np.exp(np.mean([np.log(r["metrics"][metric]) for r in having if r["point"][path] == value])))
            for value in values
        }
        found.append(Effect(path=path, means=means))
    return sorted(found, key=lambda effect: -effect.span)


def tokens_per_s_per_user(result: Result) -> float:
    """How fast one request is answered: the inverse of the time per output token, or of the step."""
    metrics: dict[str, float] = result["metrics"]
    return 1 / (metrics.get("tpot_s.mean") or metrics["step_time_s"])


def throughput(result: Result) -> float:
    """Tokens/s of a device, or of all where only that is known."""
    metrics = result["metrics"]
    return float(metrics.get(THROUGHPUT, metrics["tokens_per_s"]))


def front(results: Sequence[Result]) -> list[Result]:
    """Points that no other beats in both speed for a user and throughput, the fastest for a user first."""
    order = sorted(done(results), key=lambda r: (-tokens_per_s_per_user(r), -throughput(r)))
    kept: list[Result] = []
    for result in order:
        if not kept or throughput(result) > throughput(kept[-1]):
            kept.append(result)
    return kept


def csv_text(results: Sequence[Result]) -> str:
    """A row a point: its values, its metrics, its error."""
    rows = flat(results)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(results: Sequence[Result]) -> list[dict[str, object]]:
    """A flat record a point; paths and metrics never share a name, since all paths begin with a section."""
    return [
        {**result["point"], **result.get("metrics", {}), **({"error": result["error"]} if "error" in result else {})}
        for result in results
    ]
