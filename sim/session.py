"""What the plans of one command share: model, traces, settings and reductions, each made once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from placement.plan import Placement
from placement.problem import PlacementProblem
from placement.reduction import Reduction, reduce_trace
from placement.solve import solve
from scenarios.catalog import find_model
from scenarios.models import ModelCard
from scenarios.specs import ClusterSpec, ParallelSpec, PlacementSpec, ScenarioSpec, ScheduleSpec, WorkloadSpec
from sim.setting import Setting, make_setting, open_trace
from sim.size import check_schedule
from traces.routing import RoutingTrace

ReductionKey = tuple[int, str, int, str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One combination of axes: what a row of a table stands for."""

    cluster: ClusterSpec
    parallel: ParallelSpec
    placement: PlacementSpec
    schedule: ScheduleSpec


@dataclass(slots=True)
class Session:
    """Caches by content; `base` is the folder that paths of the scenario are relative to."""

    spec: ScenarioSpec
    base: Path
    model: ModelCard = field(init=False)
    traces: dict[str, RoutingTrace] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    reductions: dict[ReductionKey, Reduction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = find_model(self.spec.model, self.base)

    def setting(self, cluster: ClusterSpec, parallel: ParallelSpec, workload: WorkloadSpec) -> Setting:
        """The setting of one combination of the scenario's axes."""
        trace_key = f"{workload.trace} {workload.synthetic}"
        if trace_key not in self.traces:
            self.traces[trace_key] = open_trace(workload, self.model, self.base)
        key = f"{cluster} {parallel} {workload}"
        if key not in self.settings:
            self.settings[key] = make_setting(
                model=self.model,
                cluster=cluster,
                parallel=parallel,
                workload=workload,
                trace=self.traces[trace_key],
                seed=self.spec.seed,
                base=self.base,
            )
        return self.settings[key]

    def reduction(self, setting: Setting, placement: Placement, schedule: ScheduleSpec) -> Reduction:
        """The reduction of the setting's steps under `placement`, shared by the schedules that can."""
        check_schedule(schedule, setting.workload, setting.model, setting.cluster.n_devices)
        chunks = schedule.n_parts
        keep_pairs = schedule.exchange.law != "port"
        key = (id(setting), placement_digest(placement), chunks, schedule.exchange.dedup, keep_pairs)
        if key not in self.reductions:
            self.reductions[key] = reduce_trace(
                setting.trace,
                setting.batches.tokens,
                placement,
                setting.layout,
                chunks=chunks,
                dedup=schedule.exchange.dedup,
                keep_pairs=keep_pairs,
            )
        return self.reductions[key]


def solve_placement(setting: Setting, spec: PlacementSpec, seed: int = 0) -> Placement:
    """The plan of `spec`'s solver, fitted on the setting's fitted part; `seed` is that of the scenario."""
    problem = PlacementProblem(
        loads=setting.fit_loads.astype(np.float64),
        n_ranks=setting.layout.n_ranks,
        ranks_per_node=setting.layout.ranks_per_node,
        redundant=spec.redundant,
        n_groups=setting.model.n_group,
        seed=seed,
    )
    return solve(problem, spec).placement


def placement_digest(placement: Placement) -> str:
    """Digest of what a placement does, whatever its name."""
    digest = hashlib.sha256(placement.expert_of_slot.tobytes())
    digest.update(placement.rank_of_slot.tobytes())
    digest.update(placement.split.encode())
    return digest.hexdigest()
