"""`moesim place`: one plan solved or read, measured against its bounds and, on held-out requests, against others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from placement.auto import least_redundant
from placement.formats.contents import PlanFile
from placement.judgement import Judgement
from placement.migration import moved_copies
from placement.objectives import OBJECTIVES
from placement.plan import Placement
from placement.problem import SharedSlots
from placement.reduction import reduce_trace
from placement.sample import TokenSample, batch_loads
from placement.solve import Solved
from placement.solver import ExecutionModel, ObjectiveName
from scenarios.placement_specs import PlacementSpec
from scenarios.specs import CompareSpec, ScenarioSpec
from sim.binding import Binding, binding
from sim.eplb_answer import EplbAnswer, will_eplb_help
from sim.expert_budgets import BitsAnswer, TiersAnswer, choose_bits, choose_tiers
from sim.judging import judged, reference_spec
from sim.levers import Lever, levers
from sim.plan_files import ReadPlan, plan_file
from sim.result import Comparison, RunResult
from sim.run import compare_in
from sim.session import Plan, Session, current_plan, placement_problem
from sim.setting import Setting, check_plain

Told = Callable[[str], None]


ALWAYS: tuple[ObjectiveName, ...] = ("load", "time")
"""Objectives that every plan is measured by, beside the one that its solver minimises."""
BOUNDED_EXPERTS = 64
"""Experts of a layer up to which `--explain` bounds the ranks that a token visits: 3 s a layer, 20 s with 256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One objective of the plan on the fitted part, as in `placement.solve.Solved`; `minimised`: by its solver."""

    name: ObjectiveName
    unit: str
    value: float
    bound: float
    minimised: bool

    @property
    def gap(self) -> float | None:
        """(value - bound) / bound; none where the bound says nothing."""
        return (self.value - self.bound) / self.bound if self.bound > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Answers beside the plan: what binds, what changes would bring, and whether EPLB helps."""

    binding: Binding
    levers: tuple[Lever, ...]
    eplb: EplbAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A plan and what is known of it.

    comparison   the plan, experts in order, and EPLB with one spare slot a rank, simulated on held-out requests.
    plan         name of the plan's row there.
    solver       solver, or `file` with its format; status, execution model and time are those of `Solved`.
    judgement    MoE time over that of `reference`, a plan of EPLB, on fitted, held-out and shifted requests.
    bits, tiers  widths and memory tiers of experts, where the scenario asks for them.
    moved_copies copies on ranks that lack the expert under the plan in force; None where there is none.
    """

    comparison: Comparison
    plan: str
    solver: str
    status: str
    execution: ExecutionModel
    solve_time_s: float
    measures: tuple[Measure, ...]
    judgement: Judgement
    reference: str
    moved_copies: int | None
    file: PlanFile
    bits: BitsAnswer | None
    tiers: TiersAnswer | None
    explanation: Explanation | None

    @property
    def row(self) -> RunResult:
        """The plan, simulated."""
        return next(result for result in self.comparison.tables[0].results if result.name == self.plan)

    def as_json(self) -> dict[str, Any]:
        """The result file of `compare` with a section `placement`, as documented in docs/reference/nomenclature.md."""
        measures = [asdict(measure) | {"gap": measure.gap} for measure in self.measures]
        facts: dict[str, Any] = {
            "plan": self.plan,
            "solver": self.solver,
            "status": self.status,
            "execution": self.execution,
            "solve_time_s": self.solve_time_s,
            "moved_copies": self.moved_copies,
            "replica_slots": self.file.placement.replica_slots.tolist(),
            "objectives": measures,
            "judgement": asdict(self.judgement) | {"reference": self.reference},
        }
        for name, answer in (("bits", self.bits), ("tiers", self.tiers)):
            if answer is not None:
                facts[name] = answer.as_json()
        if self.explanation is not None:
            told = self.explanation
            cases = [asdict(case) | {"verdict": case.verdict} for case in told.eplb.cases]
            facts["explain"] = {
                "binding": asdict(told.binding),
                "levers": [asdict(lever) for lever in told.levers],
                "eplb": {"folds": told.eplb.folds, "steps": told.eplb.steps, "cases": cases},
            }
        return self.comparison.as_json() | {"placement": facts}


def place(
    spec: ScenarioSpec, base: Path, version: str, *, explain: bool = False, told: Told = lambda _: None
) -> Placed:
    """The plan of `spec.placement` with its measures; `told` hears what is being done.

    Raises what solvers, files of plans and simulations raise.
    """
    session = Session(spec, base, spills=spec.tiers is not None)
    told("reading the trace")
    setting = session.setting(spec.cluster, spec.parallel, spec.workload)
    check_plain(setting, "moesim place")
    plan = replace(Plan.of(spec), serving=None, bits=None)  # plans are judged on steps, and of experts that are alike
    told(f"solving {spec.placement.solver}")
    found = session.plan_of(setting, plan)
    told("budgets of experts")
    bits, factor = (None, None) if spec.bits is None else choose_bits(setting, spec.bits, spec.seed)
    tiers = None if spec.tiers is None else choose_tiers(setting, found.placement, spec.tiers, spec.memory, factor)
    axes = CompareSpec(placement=(*_references(setting, spec.placement), spec.placement))
    session.spec = spec.model_copy(update={"compare": axes, "bits": None})
    comparison = compare_in(session, axes, version, lambda name, _: told(f"simulating {name}"))
    name = found.placement.name
    counted = explain and setting.model.n_experts <= BOUNDED_EXPERTS
    names: tuple[ObjectiveName, ...] = (*ALWAYS, "visits") if counted else ALWAYS
    told("judging")
    reference = session.plan_of(setting, replace(plan, placement=reference_spec(setting))).placement
    exchange = spec.schedule.exchange
    return Placed(
        comparison=comparison,
        plan=name,
        solver=f"file ({found.format})" if isinstance(found, ReadPlan) else spec.placement.solver,
        status="read" if isinstance(found, ReadPlan) else found.status,
        execution="any" if isinstance(found, ReadPlan) else found.execution,
        solve_time_s=0.0 if isinstance(found, ReadPlan) else found.time_s,
        measures=_measures(session, setting, plan, found, names),
        judgement=judged(setting, found.placement, reference, exchange, spec.seed),
        reference=reference.name,
        moved_copies=_moved(setting, spec.placement, base, found.placement),
        file=plan_file(setting, found.placement),
        bits=bits,
        tiers=tiers,
        explanation=_explanation(session, setting, plan, comparison, told) if explain else None,
    )


def _moved(setting: Setting, spec: PlacementSpec, base: Path, plan: Placement) -> int | None:
    """Copies that an engine must fetch to go from the plan in force to `plan`, in all layers."""
    current = current_plan(setting, spec, base)
    if current is None:
        return None
    before, after = (each.expert_of_slot.astype(np.intp) for each in (current, plan))
    return int(moved_copies(before, after, plan.n_ranks, plan.n_experts).sum())


def _references(setting: Setting, own: PlacementSpec) -> list[PlacementSpec]:
    """Experts in order, and EPLB with one spare slot a rank, where the plan is neither."""
    least = least_redundant(setting.model.n_experts, setting.layout.n_ranks)
    references = [PlacementSpec(redundant=least), reference_spec(setting)]
    return [spec for spec in references if spec.model_dump() != own.model_dump()]


def _measures(
    session: Session, setting: Setting, plan: Plan, found: Solved | ReadPlan, names: Sequence[ObjectiveName]
) -> tuple[Measure, ...]:
    placement, spec = found.placement, plan.placement
    counted = PlacementSpec(redundant=placement.redundant_slots)
    if spec.total_redundant is not None:
        counted = PlacementSpec(total_redundant=spec.total_redundant, spare=spec.spare)
    problem = placement_problem(setting, counted, session.spec.seed, plan.schedule.exchange)
    if isinstance(found, ReadPlan) and np.ptp(placement.replica_slots) > 0:
        sizes = sorted({int(size) for size in placement.replica_slots})
        shared = SharedSlots(total=int(placement.replica_slots.sum()), sizes=tuple(sizes))
        problem = replace(problem, shared=shared, redundant=max(sizes))
    if setting.fit_batches is not None:
        steps = setting.fit_batches()
        sample = TokenSample(trace=steps.trace, tokens=steps.tokens)
        problem = replace(problem, sample=sample, batch_loads=batch_loads(sample))
    measures = []
    if isinstance(found, Solved):
        own = Measure(
            name=found.objective_name, unit=found.unit, value=found.objective, bound=found.bound, minimised=True
        )
        measures.append(own)
    for name in names:
        if not any(measure.name == name for measure in measures):
            objective = OBJECTIVES[name]
            value, bound = objective.value(placement, problem), objective.bound(problem)
            measures.append(Measure(name=name, unit=objective.unit, value=value, bound=bound, minimised=False))
    return tuple(measures)


def _explanation(session: Session, setting: Setting, plan: Plan, comparison: Comparison, told: Told) -> Explanation:
    placement: Placement = session.plan_of(setting, plan).placement
    base = next(result for result in comparison.tables[0].results if result.name == placement.name)
    told("what binds")
    reduction = reduce_trace(
        setting.batches.trace, setting.batches.tokens, placement, setting.layout, dedup=plan.schedule.exchange.dedup
    )
    bound = binding(setting, placement, reduction, plan.schedule)
    pulled = levers(session, setting, plan, base, told)
    told("will EPLB help")
    answer = will_eplb_help(setting, plan.schedule, session.spec.seed)
    return Explanation(binding=bound, levers=pulled, eplb=answer)
