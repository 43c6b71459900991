"""Cases of a paper's file as scenarios: changes by path, fitted numbers, and one simulation of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import scipy
from pydantic import ValidationError

from scenarios.errors import MemoryInfeasible, ScenarioError
from scenarios.explain import told
from scenarios.overrides import change
from scenarios.paper_specs import INFEASIBLE, FitSpec, PaperSpec
from scenarios.published import read_published, rounded
from scenarios.specs import CompareSpec, ScenarioSpec
from sim.result import Constant, RunResult
from sim.run import compare_in
from sim.session import Session, Shared

FEASIBLE = "feasible"
"""Metric of every case: 1 where it fits in memory, 0 where it does not."""

MOE_TIME = "moe_time_s"
"""Metric of every case: the step without attention, dense layers and head, as papers time a layer of experts."""
AROUND_EXPERTS = ("attention", "projections", "core", "mlp", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Metrics of a case, and the constants that they rest on; none of both but `feasible` where it does not fit."""

    metrics: dict[str, float]
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A fit with the number that it found, and the names of the constants that this number decides."""

    fit: FitSpec
    value: str | float
    decides: frozenset[str]

    @property
    def constant(self) -> Constant:
        """The number with where it comes from."""
        fit = self.fit
        value = f"{self.value:.4g}" if isinstance(self.value, float) else rounded(self.value)
        cases = f" of {', '.join(fit.cases)}" if fit.cases else ""
        source = f"{fit.metric} of {fit.case} = {fit.published}: {fit.source}"
        return Constant(name=f"{fit.path}{cases}", value=value, kind="fitted", source=source)


@dataclass(slots=True)
class Cases:
    """The cases of one paper; each is simulated once and again only where a fit changes it."""

    paper: PaperSpec
    base: Path
    version: str
    fitted: dict[str, list[Solved]] = field(default_factory=dict)
    results: dict[tuple[str, str], Simulated] = field(default_factory=dict)
    shared: Shared = field(default_factory=Shared)

    def fit(self) -> None:
        """Solve the fits of the file, in order. Raises ScenarioError where a range holds no solution."""
        for fit in self.paper.fits:
            solved = self._solved(fit)
            for case in fit.cases or tuple(self.paper.cases):
                self.fitted.setdefault(case, []).append(solved)
        self.results.clear()

    def fits_of(self, cases: Collection[str]) -> list[FitSpec]:
        """The fits of the file that decide a number of any of these cases."""
        return [fit for fit in self.paper.fits if not fit.cases or set(fit.cases) & set(cases)]

    def constants(self) -> tuple[Constant, ...]:
        """All that the cases simulated so far rest on: what was fitted, then numbers of cards and of the scenario."""
        found: dict[Constant, None] = {}
        for case, _ in self.results:
            found |= dict.fromkeys(solved.constant for solved in self.fitted.get(case, []))
        for (case, _), result in self.results.items():
            decided = {name for solved in self.fitted.get(case, []) for name in solved.decides}
            found |= dict.fromkeys(constant for constant in result.constants if constant.name not in decided)
        return tuple(found)

    def metric(self, name: str, case: str, point: dict[str, Any] | None = None) -> float:
        """A metric of a case, in SI units: its result, `breakdown_s.KIND`, `busy_s.LANE`, `moe_time_s`, or `feasible`.

        point  changes of the case: a point of a grid.
        Raises ScenarioError for an unknown case or metric, and where the case does not fit in memory.
        """
        if case not in self.paper.cases:
            raise ScenarioError(
                f"{self.paper.system}: there is no case '{case}'; there are {', '.join(self.paper.cases)}"
            )
        key = case, repr(point)
        if key not in self.results:
            self.results[key] = self._simulated(case, self._fitted(case) | (point or {}))
        found = self.results[key].metrics
        if name not in found:
            known = f"known are {', '.join(found)}" if found[FEASIBLE] else f"the case is infeasible ({INFEASIBLE})"
            raise ScenarioError(f"{self.paper.system}: case {case} has no metric '{name}'; {known}")
        return found[name]

    def _fitted(self, case: str) -> dict[str, Any]:
        return {solved.fit.path: solved.value for solved in self.fitted.get(case, [])}

    def _solved(self, fit: FitSpec) -> Solved:
        """The number, with its unit, at which the metric is as published; on a logarithmic scale."""
        target = read_published(fit.published).value
        low, high = (read_published(end) for end in fit.range)
        own = self._fitted(fit.case)
        met: list[frozenset[Constant]] = []

        def excess(log_number: float, *_: Any) -> float:
            changed = own | {fit.path: low.written(math.exp(log_number))}
            result = self._simulated(fit.case, changed)
            metrics = result.metrics
            met.append(frozenset(result.constants))
            if fit.metric not in metrics:
                raise ScenarioError(f"{self.paper.system}: fit of {fit.path}: no metric '{fit.metric}' in {fit.case}")
            return metrics[fit.metric] / target - 1

        ends = [math.log(low.number), math.log(high.number)]
        beyond = [excess(end) for end in ends]
        if beyond[0] * beyond[1] > 0:
            values = " and ".join(f"{(1 + one) * target:.4g}" for one in beyond)
            raise ScenarioError(
                f"{self.paper.system}: fit of {fit.path}: {fit.metric} of {fit.case} is {values} at the ends of "
                f"{fit.range[0]} to {fit.range[1]}, and never {fit.published}; widen the range"
            )
        root = float(scipy.optimize.brentq(excess, ends[0], ends[1], xtol=1e-4))
        decides = frozenset(constant.name for constant in met[0] ^ met[1])
        return Solved(fit=fit, value=low.written(math.exp(root)), decides=decides)

    def _simulated(self, case: str, more: dict[str, Any]) -> Simulated:
        spec = self._scenario(case, more)
        try:
            session = Session(spec, self.base, banded=False, shared=self.shared)
            comparison = compare_in(session, CompareSpec(), self.version)
        except MemoryInfeasible:
            return Simulated(metrics={FEASIBLE: 0.0})
        return Simulated(metrics=_metrics(comparison.tables[0].results[0]), constants=comparison.constants)

    def _scenario(self, case: str, more: dict[str, Any]) -> ScenarioSpec:
        data = copy.deepcopy(self.paper.scenario)
        try:
            for path, value in (*self._changes(case, ()).items(), *more.items()):
                change(data, path, value)
            return ScenarioSpec.model_validate(data)
        except ValidationError as error:
            raise ScenarioError(f"{self.paper.system}: case {case}: {told(error, data, ScenarioSpec)}") from None
        except ValueError as error:
            raise ScenarioError(f"{self.paper.system}: case {case}: {error}") from None

    def _changes(self, case: str, seen: tuple[str, ...]) -> dict[str, Any]:
        if case in seen or case not in self.paper.cases:
            trouble = "starts from itself" if case in seen else "is not in the file"
            raise ScenarioError(f"{self.paper.system}: case {case} {trouble}")
        spec = self.paper.cases[case]
        earlier = {} if spec.of is None else self._changes(spec.of, (*seen, case))
        return earlier | spec.set


def _metrics(result: RunResult) -> dict[str, float]:
    """Metrics of a result, and what papers print: times by kind of work and by lane, and of layers of experts alone.

    Times by kind of exchange (`busy_s.dispatch`) are of the step in the log; papers have one.
    """
    step_s = result.metrics["step_time_s"]
    kinds = {f"breakdown_s.{kind}": time_s for kind, time_s in result.breakdown_s.items()}
    on_device_s = step_s - result.breakdown_s.get("host", 0.0)
    lanes = {
        name.replace("busy_frac", "busy_s").replace("-", "_"): float(share * on_device_s)
        for name, share in result.metrics.items()
        if name.startswith("busy_frac.")
    }
    exchanges = {f"busy_s.{op.work.kind}": 0.0 for op in result.log if op.lane == "exchange"}
    for op in result.log:
        if op.lane == "exchange":
            exchanges[f"busy_s.{op.work.kind}"] += float(op.busy_s.mean())
    others_s = sum(result.breakdown_s.get(kind, 0.0) for kind in AROUND_EXPERTS)
    return {**result.metrics, **kinds, **lanes, **exchanges, MOE_TIME: step_s - others_s, FEASIBLE: 1.0}
