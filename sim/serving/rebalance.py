"""Placements solved anew for a running engine, from what its tokens visited lately; copies share its links meanwhile.

    look every so many iterations -> solve -> copy, beside exchanges that get what is left of the ports -> switch

The old plan serves until all copies are there.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace

import numpy as np
import simpy
from numpy.typing import NDArray

from hwmodels.links import port_s
from placement.copies import Copies, copies_between
from placement.migration import relabelled
from placement.plan import FloatArray, Placement
from placement.solve import SOLVERS, solve
from placement.solver import Solver
from scenarios.errors import ScenarioError
from scenarios.placement_specs import PlacementSpec
from scenarios.serving_specs import RebalanceSpec
from sim.serving.corrected import Corrected
from sim.serving.engine import Engine
from sim.session import placement_problem
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of placement: when it was begun, when copies began, when it took effect [s]; moved_bytes by link."""

    begun_s: float
    copying_s: float
    done_s: float
    moved_bytes: dict[str, float]


@dataclass(slots=True, kw_only=True)
class Rebalancing:
    """Looks at loads and changes placements; `changes` are those that took effect."""

    spec: RebalanceSpec
    plan: PlacementSpec
    seed: int
    corrected: Corrected
    changes: list[Change] = field(default_factory=list)
    _planned: FloatArray = field(init=False)
    _busy: bool = False

    def __post_init__(self) -> None:
        unknown = set(self._solver.needs) - {"batch_loads", "current"}
        if unknown or self.plan.total_redundant is not None:
            raise ScenarioError(
                f"serving.rebalance: {self.plan.solver} plans from more than loads of a running engine; use a solver "
                "of loads with redundant: N, such as eplb, greedy, saa or migrate"
            )
        self._planned = _shares(self.corrected.experts.setting.fit_loads[None])

    @property
    def _solver(self) -> Solver:
        if self.plan.solver == "file":
            raise ScenarioError("serving.rebalance: the plan of a file is not solved; name a solver in its placement")
        return SOLVERS[self.plan.solver]

    def look(self, engine: Engine) -> None:
        """Begin a change where loads have drifted far enough from those that the plan was made for."""
        window = [sample.loads for sample in self.corrected.window(self.spec.window)]
        if self._busy or not window:
            return
        loads = np.stack(window).astype(np.float64)
        shares = _shares(loads)
        if self.spec.drift and drift_of(self._planned, shares) < self.spec.drift:
            return
        experts = self.corrected.experts
        target = self._solved(experts.setting, experts.placement, loads)
        copies = copies_between(experts.placement, target, experts.setting.layout.ranks_per_node)
        self._planned = shares
        self._busy = True
        engine.env.process(self._carry_out(engine, target, copies))

    def _solved(self, setting: Setting, current: Placement, loads: FloatArray) -> Placement:
        """The plan for loads float64[iteration, layer, expert], with ranks named so that most copies stay."""
        own = replace(setting, fit_loads=loads.sum(axis=0), fit_batches=None)
        problem = placement_problem(own, self.plan, self.seed, self.corrected.experts.schedule.exchange)
        adjusts = self._solver.adjusts or "current" in self._solver.needs
        known = replace(problem, batch_loads=loads, current=current if adjusts else None)
        found = solve(known, self.plan).placement
        if found.n_slots != current.n_slots or not (found.filled.all() and current.filled.all()):
            return found
        slots = relabelled(
            current.expert_of_slot.astype(np.intp), found.expert_of_slot.astype(np.intp), found.n_ranks, found.n_experts
        )
        return replace(found, expert_of_slot=slots.astype(np.int32))

    def _carry_out(self, engine: Engine, target: Placement, copies: Copies) -> Generator[simpy.Event, None, None]:
        experts, env = self.corrected.experts, engine.env
        begun_s = env.now
        yield env.timeout(self.spec.solve)
        times_s, moved_bytes = copy_times_s(experts.setting, copies)
        copying_s = env.now
        self._share_links(1 / (1 - self.spec.link_frac) if len(copies) else 1.0)
        yield env.timeout(times_s / self.spec.link_frac)

        def switch(engine: Engine) -> None:
            experts.placement = target
            self._share_links(1.0)
            self._busy = False
            done_s = engine.env.now
            self.changes.append(Change(begun_s=begun_s, copying_s=copying_s, done_s=done_s, moved_bytes=moved_bytes))

        engine.between(switch)

    def _share_links(self, slower: float) -> None:
        self.corrected.experts.slower = slower
        self.corrected.renew()


def copy_times_s(setting: Setting, copies: Copies) -> tuple[float, dict[str, float]]:
    """Time of copies that have all ports to themselves [s], and bytes by class of link.

    The fullest send or receive port; a rank's copies are shared by the devices of its tensor parallelism.
    """
    cluster, layout = setting.cluster, setting.layout
    rank_bytes = setting.model.expert_bytes / layout.tp
    node = np.arange(layout.n_ranks) // layout.ranks_per_node
    crosses = node[copies.source] != node[copies.target]
    longest_s, moved_bytes = 0.0, {}
    for name, link, mine in (("intra", cluster.intra, ~crosses), ("inter", cluster.inter, crosses)):
        if link is None or not mine.any():
            continue
        ports = [np.bincount(ranks[mine], minlength=layout.n_ranks) for ranks in (copies.source, copies.target)]
        longest_s = max(longest_s, float(port_s(np.max(ports) * rank_bytes, link)))
        moved_bytes[name] = float(mine.sum() * setting.model.expert_bytes)
    return longest_s, moved_bytes


def drift_of(planned: FloatArray, shares: FloatArray) -> float:
    """How far shares of experts float64[layer, expert] are apart: total variation, mean over layers, 0 to 1."""
    return float(np.abs(planned - shares).sum(axis=1).mean() / 2)


def _shares(loads: NDArray[np.number]) -> FloatArray:
    """Shares of experts, float64[layer, expert], from loads [iteration, layer, expert]."""
    total = loads.sum(axis=0, dtype=np.float64)
    shares: FloatArray = total / np.maximum(total.sum(axis=1, keepdims=True), 1e-12)
    return shares
