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
from scenarios.errors import PlacementError, ScenarioError
from scenarios.models import ModelCard
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ExchangeSpec, ScheduleSpec
from scenarios.serving_specs import ServingSpec
from scenarios.specs import MemorySpec, ScenarioSpec
from scenarios.training_specs import TrainingSpec
from scenarios.workload_specs import WorkloadSpec
from sim.coherent import check_coherent
from sim.kernel_pricing import machine_of
from sim.pipelines.parts import Part, cut_model
from sim.pipelines.tasks import PipelineShape
from sim.plan_files import ReadPlan, plan_of_file
from sim.setting import Setting, make_setting, open_trace
from sim.size import check_schedule
from sim.transforms import transformed
from traces.routes import iterated
from traces.routing import RoutingTrace

ReductionKey = tuple[int, int, str, str, int, str, str, bool, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One combination of axes: what a row of a table stands for."""

    cluster: ClusterSpec
    parallel: ParallelSpec
    placement: PlacementSpec
    schedule: ScheduleSpec
    memory: MemorySpec
    serving: ServingSpec | None = None
    training: TrainingSpec = field(default_factory=TrainingSpec)

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
            training=spec.training,
        )


@dataclass(slots=True)
class Shared:
    """What sessions of one folder may share, whatever the sizes of their models and the speed of their machines.

    digests  of the first layer of each trace.
    steps    settings by trace, workload and number of devices, for the steps that they replay.
    """

    traces: dict[str, RoutingTrace] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    steps: dict[str, Setting] = field(default_factory=dict)
    reductions: dict[ReductionKey, Reduction] = field(default_factory=dict)


@dataclass(slots=True)
class Session:
    """Caches by content; `base` is the folder that paths of the scenario are relative to.

    spills  experts may exceed device memory: the rest waits in the host's, and is simulated as if it did not.
    banded  results carry error bands; without, their ends are the prediction itself.
    """

    spec: ScenarioSpec
    base: Path
    spills: bool = False
    banded: bool = True
    model: ModelCard = field(init=False)
    shared: Shared = field(default_factory=Shared)
    settings: dict[str, Setting] = field(default_factory=dict)
    plans: dict[str, Solved | ReadPlan] = field(default_factory=dict)
    cuts: dict[str, list[Part]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = find_model(self.spec.model, self.base)

    def setting(
        self,
        cluster: ClusterSpec,
        parallel: ParallelSpec,
        workload: WorkloadSpec,
        training: TrainingSpec | None = None,
    ) -> Setting:
        """The setting of one combination of the scenario's axes; training: default that of the scenario."""
        training = training or self.spec.training
        model = self.model
        routing = (model.name, model.expert_counts, model.top_k, model.iterations, model.moe_layers)
        trace_key = f"{workload.trace} {workload.synthetic} {routing}"
        traces, steps = self.shared.traces, self.shared.steps
        if trace_key not in traces:
            traces[trace_key] = open_trace(workload, self.model, self.base)
        key = f"{cluster} {parallel} {workload} {training}"
        if key not in self.settings:
            group = parallel.experts and parallel.experts.ep * parallel.experts.tp
            devices = (cluster.node, cluster.nodes, cluster.devices_per_node, cluster.cards, group)
            alike = f"{trace_key} {workload} {devices} {self.spec.seed}"
            self.settings[key] = make_setting(
                model=self.model,
                cluster=cluster,
                parallel=parallel,
                workload=workload,
                trace=traces[trace_key],
                seed=self.spec.seed,
                base=self.base,
                alike=steps.get(alike),
                training=training,
            )
            steps.setdefault(alike, self.settings[key])
        return self.settings[key]

    def traces(self) -> list[tuple[RoutingTrace, str]]:
        """The traces that the session's settings replay, each with the digest of its first layer."""
        traces = {id(setting.trace): setting.trace for setting in self.settings.values()}
        for key, trace in traces.items():
            if key not in self.shared.digests:
                self.shared.digests[key] = hashlib.sha256(trace.ids[0].tobytes()).hexdigest()[:16]
        return [(trace, self.shared.digests[key]) for key, trace in traces.items()]

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
        how = (exchange.dedup, exchange.algorithm, keep_pairs, _transforms(setting, schedule))
        digest, layout = placement_digest(placement), str(setting.layout)
        key = (id(setting.trace), id(setting.batches), layout, digest, chunks, *how)
        if key not in self.shared.reductions:
            self.shared.reductions[key] = reduced(setting, placement, schedule)
            self.shared.steps.setdefault(str(key), setting)  # as long as it is there nothing else has its id
        return self.shared.reductions[key]

    def parts(
        self, setting: Setting, placement: Placement, shape: PipelineShape, layers: tuple[int, ...]
    ) -> list[Part]:
        """The setting cut into parts of a pipeline, once for all schedules that cut it so."""
        key = f"{id(setting)} {placement_digest(placement)} {shape.n_parts} {shape.bidirectional} {layers}"
        if key not in self.cuts:
            self.cuts[key] = cut_model(setting, placement, shape, layers)
        return self.cuts[key]


def _transforms(setting: Setting, schedule: ScheduleSpec) -> str:
    """What decides how a schedule changes loads; prices count where experts are shadowed."""
    if schedule.move is None:
        return f"{schedule.payload} {schedule.chunks_by}"
    priced = f"{setting.model} {setting.cluster}"
    return f"{schedule.move} {schedule.chunks_by} {schedule.overlap} {schedule.exchange} {priced}"


def reduced(setting: Setting, placement: Placement, schedule: ScheduleSpec) -> Reduction:
    """The reduction of the setting's steps that `schedule` needs."""
    check_coherent(setting, schedule)
    setting, placement = every_run(setting, placement, schedule)
    if schedule.transforms_loads or setting.workload.routing.pad:
        return transformed(setting, placement, schedule)
    return reduce_trace(
        setting.batches.trace,
        setting.batches.tokens,
        placement,
        setting.layout,
        chunks=schedule.n_parts,
        dedup=schedule.exchange.dedup,
        algorithm=schedule.exchange.algorithm,
        keep_pairs=schedule.exchange.law != "port",
    )


def every_run(setting: Setting, placement: Placement, schedule: ScheduleSpec) -> tuple[Setting, Placement]:
    """Setting and placement with a row for every run of a MoE layer.

    Raises ScenarioError where experts move, which are then fetched once for several runs.
    """
    n = setting.model.iterations
    if n == 1:
        return setting, placement
    if schedule.move is not None:
        raise ScenarioError(
            f"schedule.move: experts that a layer fetched are in use for {n} iterations; leave move out"
        )
    batches = replace(setting.batches, trace=iterated(setting.batches.trace, n))
    return replace(setting, batches=batches), placement.for_rows(batches.trace.n_layers)


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
    if setting.pool is not None and ({"sample", "machine"} & set(solver.needs) or spec.split == "lp-local"):
        raise PlacementError(
            f"solver {spec.solver} with split {spec.split} looks at where tokens are, and with cluster.experts none is "
            "on a device of experts; use a solver of loads, such as greedy, eplb or ilp-load, with another split"
        )
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
    steps = setting.fit_batches()
    sample = TokenSample(trace=steps.trace, tokens=steps.tokens)
    return with_sample(problem, sample, solver.needs)


def placement_digest(placement: Placement) -> str:
    """Digest of what a placement does, whatever its name."""
    digest = hashlib.sha256(placement.expert_of_slot.tobytes())
    digest.update(placement.rank_of_slot.tobytes())
    digest.update(placement.split.encode())
    return digest.hexdigest()
