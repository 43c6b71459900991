"""Results: frozen values that tables, reports and JSON are made from."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.expert_loads import ExpertLoads
from sim.log import OpTimes
from sim.pipelines.pipeline import StageBar
from sim.port_loads import PortLoads
from sim.serving.loop import Served

SCHEMA = 1
"""Version of the result file. New keys and metrics leave it as it is; a key that is renamed, removed or of another
meaning raises it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One number that a result rests on, with its origin."""

    name: str
    value: str
    kind: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One plan, simulated.

    plan               what was varied or chosen, by section of the scenario.
    metrics            see docs/reference/nomenclature.md; names carry units.
    breakdown_s        mean step time of a device by cause, in seconds; sums to the mean step time.
    step_times_s       float64[step].
    device_tokens      float64[layer, device]: routed tokens per step.
    device_experts     float64[layer, device]: distinct expert slots with a token, per step.
    expert_loads       tokens of every expert's fullest copy.
    layer_imbalance    float64[layer]: max over mean tokens of the ranks, averaged over steps.
    traffic_bytes      float64[source, destination]: dispatch and combine per step.
    port_loads         bytes and busy time of the ports of each device.
    devices_per_node   neighbours in these arrays that share a node.
    log                operations of one typical step (the one of median time).
    stages             of a pipeline: what its stages do in a step of median time.
    notes              what a reader must know of this plan: what a search chose.
    served             what happened to requests, where a load was served; arrays above are then of a typical step.
    """

    name: str
    plan: dict[str, Any]
    metrics: dict[str, float]
    breakdown_s: dict[str, float]
    step_times_s: NDArray[np.float64] = field(repr=False)
    device_tokens: NDArray[np.float64] = field(repr=False)
    device_experts: NDArray[np.float64] = field(repr=False)
    expert_loads: ExpertLoads = field(repr=False)
    layer_imbalance: NDArray[np.float64] = field(repr=False)
    traffic_bytes: NDArray[np.float64] = field(repr=False)
    port_loads: PortLoads = field(repr=False)
    devices_per_node: int
    log: tuple[OpTimes, ...] = field(repr=False)
    logged_step: int = 0
    stages: tuple[StageBar, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    served: Served | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Name, plan and metrics, as documented for result.json."""
        return {"name": self.name, "plan": self.plan, "metrics": self.metrics, "breakdown_s": self.breakdown_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A plan of a comparison that cannot be simulated, and why: what is short by how much, and what would help."""

    name: str
    reason: str

    def sentence(self) -> str:
        """A note to a table."""
        return f"Left out, since it does not fit: {self.name}. {self.reason}"


COSTS = frozenset(
    {
        "memory_bytes",
        "bytes",
        "load_imbalance",
        "model_error",
        "table_error",
        "cross_device_frac",
        "cross_node_frac",
        "dropped_frac",
        "bubble_frac",
        "n_preempted",
        "energy_j_per_token",
        "cost_usd_per_mtok",
    }
)
"""Metrics that are better low, beside times."""


def is_cost(metric: str) -> bool:
    """Whether less of a metric is better."""
    name = metric.split(".")[0]
    return (name.endswith("_s") and "_per_s" not in name) or name in COSTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The plans that competed on one workload, the best first; gains are over the first one of the scenario.

    ranked_by  metric that decides: tokens/s of steps; of served loads the goodput, or without limits the mean latency.
    left_out   plans that do not fit; gains are over the first one that does.
    """

    title: str
    workload: dict[str, Any]
    results: tuple[RunResult, ...]
    first: str
    moe_layers: tuple[int, ...]
    notes: tuple[str, ...]
    ranked_by: str = "tokens_per_s"
    left_out: tuple[LeftOut, ...] = ()

    def only(self, names: Collection[str]) -> Table:
        """The table of some plans; the first plan stays the one that gains are over, and must be among them."""
        return replace(self, results=tuple(result for result in self.results if result.name in names))

    def gain(self, result: RunResult) -> float:
        """How many times better than the first plan of the scenario, minus one."""
        base = next(other for other in self.results if other.name == self.first)
        return self.lead(result, base)

    def lead(self, result: RunResult, other: RunResult) -> float:
        """How many times better one plan is than another, minus one; of latencies the shorter one is."""
        mine, theirs = result.metrics[self.ranked_by], other.metrics[self.ranked_by]
        better, worse = (theirs, mine) if is_cost(self.ranked_by) else (mine, theirs)
        return better / worse - 1 if worse else 0.0 if better == worse else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that a `run` or `compare` found out; `run` has one table with one row."""

    scenario: str
    description: str | None
    model: str
    cluster: str
    tables: tuple[Table, ...]
    constants: tuple[Constant, ...]
    provenance: dict[str, Any]
    wall_s: float

    def as_json(self) -> dict[str, Any]:
        """The result file: versions, scenario, one entry a plan, constants and provenance."""
        left_out = [
            {"workload": t.workload, "name": one.name, "infeasible": one.reason}
            for t in self.tables
            for one in t.left_out
        ]
        return {
            "moesim": self.provenance["moesim"],
            "schema": SCHEMA,
            "scenario": self.scenario,
            "results": [
                {"workload": t.workload, "gain": t.gain(r), **r.as_json()} for t in self.tables for r in t.results
            ],
            **({"left_out": left_out} if left_out else {}),
            "notes": sorted({note for table in self.tables for note in table.notes}),
            "constants": [
                {"name": c.name, "value": c.value, "kind": c.kind, "source": c.source} for c in self.constants
            ],
            "provenance": self.provenance,
        }
