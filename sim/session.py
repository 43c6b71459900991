"""What the plans of one command share: model, traces, settings and reductions, each made once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from placement.auto import least_redundant, shared_slots
from placement.plan import Placement
from placement.problem import PlacementProblem, with_sample
from placement.reduction import Reduction, reduce_trace
from placement.sample import TokenSample
from placement.solve import SOLVERS, Solved, solve
from scenarios.catalog import find_model
from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.errors import PlacementError
from scenarios.models import ModelCard
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ExchangeSpec, ScheduleSpec
from scenarios.serving_specs import ServingSpec
from scenarios.specs import MemorySpec, ScenarioSpec
from scenarios.workload_specs import WorkloadSpec
from sim.kernel_pricing import machine_of
from sim.plan_files import ReadPlan, plan_of_file
from sim.setting import Setting, make_setting, open_trace
from sim.size import check_schedule
from sim.transforms import transformed
from traces.routing import RoutingTrace

ReductionKey = tuple[int, str, int, str, str, bool, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One combination of axes: what a row of a table stands for."""

    cluster: ClusterSpec
    parallel: ParallelSpec
    placement: PlacementSpec
    schedule: ScheduleSpec
    memory: MemorySpec
    serving: ServingSpec | None = None

    @classmethod
    def of(cls, spec: ScenarioSpec) -> Plan:
        """The plan of the scenario's own sections."""
        return cls(
            cluster=spec.cluster,
            parallel=spec.parallel,
            placement=spec.placement,
            schedule=spec.schedule,
            memory=spec.memory,
            serving=spec.serving,
        )


@dataclass(slots=True)
class Session:
    """Caches by content; `base` is the folder that paths of the scenario are relative to.

    spills  experts may exceed device memory: the rest waits in the host's, and is simulated as if it did not.
    """

    spec: ScenarioSpec
    base: Path
    spills: bool = False
    model: ModelCard = field(init=False)
    traces: dict[str, RoutingTrace] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    plans: dict[str, Solved | ReadPlan] = field(default_factory=dict)
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
                training=self.spec.training,
            )
        return self.settings[key]

    def plan_of(self, setting: Setting, plan: Plan) -> Solved | ReadPlan:
        """The plan of `plan.placement`, solved on the setting's fitted part or read from its file, once.

        The exchange of the schedule counts where the solver prices plans.
        """
        spec, exchange = plan.placement, plan.schedule.exchange
        priced = spec.solver != "file" and "machine" in SOLVERS[spec.solver].needs
        key = f"{id(setting)} {spec} {sorted(spec.model_fields_set)} {exchange if priced else None}"
        if key not in self.plans:
            if spec.solver == "file":
                self.plans[key] = plan_of_file(setting, spec, self.base)
            else:
                problem = placement_problem(setting, spec, self.spec.seed, exchange)
                self.plans[key] = solve(replace(problem, current=current_plan(setting, spec, self.base)), spec)
        return self.plans[key]

    def reduction(self, setting: Setting, placement: Placement, schedule: ScheduleSpec) -> Reduction:
        """The reduction of the setting's steps under `placement`, shared by the schedules that can."""
        check_schedule(schedule, setting.workload, setting.model, setting.cluster.n_devices)
        chunks = schedule.n_parts
        exchange = schedule.exchange
        keep_pairs = exchange.law != "port"
        how = (exchange.dedup, exchange.algorithm, keep_pairs, _transforms(schedule))
        key = (id(setting), placement_digest(placement), chunks, *how)
        if key not in self.reductions:
            self.reductions[key] = reduced(setting, placement, schedule)
        return self.reductions[key]


def _transforms(schedule: ScheduleSpec) -> str:
    """What of a schedule decides how it changes loads; prices count where experts are shadowed."""
    if schedule.move is None:
        return f"{schedule.payload} {schedule.chunks_by}"
    return f"{schedule.move} {schedule.chunks_by} {schedule.overlap} {schedule.exchange}"


def reduced(setting: Setting, placement: Placement, schedule: ScheduleSpec) -> Reduction:
    """The reduction of the setting's steps that `schedule` needs."""
    if schedule.transforms_loads:
        return transformed(setting, placement, schedule)
    return reduce_trace(
        setting.trace,
        setting.batches.tokens,
        placement,
        setting.layout,
        chunks=schedule.n_parts,
        dedup=schedule.exchange.dedup,
        algorithm=schedule.exchange.algorithm,
        keep_pairs=schedule.exchange.law != "port",
    )


def solve_placement(
    setting: Setting, spec: PlacementSpec, seed: int = 0, exchange: ExchangeSpec | None = None
) -> Placement:
    """The plan of `spec`'s solver, fitted on the setting's fitted part; `seed` is that of the scenario.

    exchange  that of the schedule which the plan will run under; default: `ExchangeSpec()`.
    """
    return solve(placement_problem(setting, spec, seed, exchange or ExchangeSpec()), spec).placement


def current_plan(setting: Setting, spec: PlacementSpec, base: Path) -> Placement | None:
    """The plan in force, from the file `spec.current` relative to `base`, or None where there is none.

    Raises PlacementError where the solver has no use for it.
    """
    if spec.current is None:
        return None
    users = [name for name, solver in SOLVERS.items() if solver.adjusts]
    if spec.solver not in users:
        raise PlacementError(
            f"current is the plan that {', '.join(users)} adjust; solver {spec.solver} has no use for it"
        )
    return plan_of_file(setting, PlacementSpec(file=spec.current), base).placement


def placement_problem(setting: Setting, spec: PlacementSpec, seed: int, exchange: ExchangeSpec) -> PlacementProblem:
    """What the solver of `spec` is told: loads and machine, and steps where it needs them.

    Raises PlacementError where the plan is that of a file.
    """
    if spec.solver == "file":
        raise PlacementError(f"the plan of {spec.file} is read, not solved")
    solver, layout = SOLVERS[spec.solver], setting.layout
    least = least_redundant(setting.model.n_experts, layout.n_ranks) if solver.resizes else spec.redundant
    shared = shared_slots(setting.model.n_experts, layout.n_ranks, spec)
    problem = PlacementProblem(
        loads=setting.fit_loads.astype(np.float64),
        n_ranks=layout.n_ranks,
        ranks_per_node=layout.ranks_per_node,
        redundant=least if shared is None else max(shared.sizes),
        shared=shared,
        n_groups=setting.model.n_group,
        seed=seed,
        machine=machine_of(setting, exchange),
    )
    if not solver.needs or setting.fit_batches is None:
        return problem
    sample = TokenSample(trace=setting.trace, tokens=setting.fit_batches.tokens)
    return with_sample(problem, sample, solver.needs)


def placement_digest(placement: Placement) -> str:
    """Digest of what a placement does, whatever its name."""
    digest = hashlib.sha256(placement.expert_of_slot.tobytes())
    digest.update(placement.rank_of_slot.tobytes())
    digest.update(placement.split.encode())
    return digest.hexdigest()
