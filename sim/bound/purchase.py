"""The best purchase within a budget: which nodes, how many, joined into groups of what size.

A group of equal nodes serves one copy of the model, at the batch with the highest bound that fits into its memory;
groups do not talk to each other, so their throughputs add up. How many of each kind to buy is an integer programme.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from hwmodels.cluster import build_cluster
from scenarios.cluster_specs import AttentionParallelSpec, ClusterSpec, ExpertParallelSpec, ParallelSpec
from scenarios.errors import BudgetInfeasible, MemoryInfeasible, PlacementInfeasible, ScenarioError
from scenarios.specs import BudgetSpec, OfferSpec, ScenarioSpec
from sim.bound.bound import Bound
from sim.bound.bounds import batch_setting, best_batch
from sim.run import simulate
from sim.session import Plan, Session

FRONT_POINTS = 40  # most purchases of a front
LESS_FRAC = 1e-5  # of a price; less than that is within the tolerance of the integer programme
CHEAPER_FRAC = 1e-9  # of two equal purchases the cheaper one is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes that serve one copy of the model, their bound at the best batch, and what the plan reaches there.

    tokens_per_s  what purchases are ranked by: `simulated_tokens_per_s`, or the bound.
    """

    offer: OfferSpec
    nodes: int
    bound: Bound
    simulated_tokens_per_s: float
    tokens_per_s: float

    @property
    def name(self) -> str:
        """ "h200-sxm-8", or "(2 x h200-sxm-8)" where several nodes serve one copy."""
        node = self.offer.node + (f" with {self.offer.device}" if self.offer.device else "")
        return node if self.nodes == 1 else f"({self.nodes} x {node})"

    @property
    def price_usd(self) -> float:
        """Price of all its nodes [USD]."""
        return self.nodes * self.offer.price

    def amount(self, limit: str) -> float:
        """Price, watts or rack units of all its nodes."""
        own = {"money": self.offer.price, "power": self.offer.power, "rack_units": self.offer.rack_units}[limit]
        return self.nodes * float(own or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """Groups and how many of each; `limits` are the parts of the budget that nothing more fits into."""

    counts: tuple[tuple[Group, int], ...]
    money_usd: float
    tokens_per_s: float
    limits: tuple[str, ...]

    @property
    def price_usd(self) -> float:
        """Money that is spent [USD]."""
        return sum(group.price_usd * count for group, count in self.counts)

    @property
    def name(self) -> str:
        """ "3 x h200-sxm-8 + 1 x (2 x a100-80-8)" """
        return " + ".join(f"{count} x {group.name}" for group, count in self.counts) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best purchase, cheaper ones on the Pareto front, all kinds of groups, and what was left out and why."""

    best: Purchase
    front: tuple[Purchase, ...]
    groups: tuple[Group, ...]
    left_out: tuple[str, ...]
    ranked_by: str


def choose(spec: ScenarioSpec, session: Session, progress: Callable[[str, float], None] | None = None) -> Choice:
    """The purchase of the scenario's `budget:`.

    Raises ScenarioError where the scenario has none, BudgetInfeasible where nothing that holds the model is paid for.
    """
    if spec.budget is None:
        raise ScenarioError(f"{spec.name}: no `budget:` section; add money and a catalogue of nodes")
    groups, left_out = _groups(spec, session, progress)
    cheapest = min(groups, key=lambda group: group.price_usd, default=None)
    if cheapest is None:
        raise BudgetInfeasible("no node of the catalogue can hold the model: " + "; ".join(left_out))
    best = _best(groups, spec.budget, spec.budget.money)
    if not best.counts:
        raise BudgetInfeasible(
            f"the budget of {spec.budget.money:,.0f} USD buys no machine that holds {session.model.name}; the cheapest "
            f"is {cheapest.name} for {cheapest.price_usd:,.0f} USD ({_needs(cheapest)}): raise the limit that is short"
        )
    return Choice(
        best=best,
        front=_front(groups, spec.budget, best),
        groups=tuple(groups),
        left_out=tuple(left_out),
        ranked_by=spec.budget.rank_by,
    )


def _front(groups: Sequence[Group], budget: BudgetSpec, best: Purchase) -> tuple[Purchase, ...]:
    """The Pareto front by price, down from the best: each the most tokens/s for less than the one above it."""
    front = [best]
    while len(front) < FRONT_POINTS:
        cheaper = _best(groups, budget, front[-1].price_usd * (1 - LESS_FRAC))
        if not cheaper.counts:
            break
        front.append(cheaper)
    return tuple(reversed(front))


def _groups(
    spec: ScenarioSpec, session: Session, progress: Callable[[str, float], None] | None
) -> tuple[list[Group], list[str]]:
    """Every kind of group, and why the others are left out."""
    catalogue = spec.budget.catalogue if spec.budget is not None else ()
    pairs = [(offer, nodes) for offer in catalogue for nodes in offer.group if nodes <= offer.most]
    groups, left_out = [], []
    for number, (offer, nodes) in enumerate(pairs):
        if progress is not None:
            progress(f"{nodes} x {offer.node}", number / len(pairs))
        try:
            groups.append(_group(spec, session, offer, nodes))
        except (MemoryInfeasible, PlacementInfeasible) as error:
            left_out.append(f"{nodes} x {offer.node}: {error}")
    return groups, left_out


def _group(spec: ScenarioSpec, session: Session, offer: OfferSpec, nodes: int) -> Group:
    plan = _plan(spec, session, offer, nodes)
    bound = best_batch(session, plan)
    setting = batch_setting(session, plan, bound.tokens_per_device)
    reached = float(simulate(session, setting, plan).metrics["tokens_per_s"])
    by_bound = spec.budget is not None and spec.budget.rank_by == "bound"
    return Group(
        offer=offer,
        nodes=nodes,
        bound=bound,
        simulated_tokens_per_s=reached,
        tokens_per_s=bound.tokens_per_s if by_bound else reached,
    )


def _plan(spec: ScenarioSpec, session: Session, offer: OfferSpec, nodes: int) -> Plan:
    """The scenario's plan on other nodes; attention keeps its tp, data and expert parallelism fill the devices."""
    cluster = ClusterSpec(
        node=offer.node, nodes=nodes, device=offer.device, kernels=offer.kernels, cards=spec.cluster.cards
    )
    n_devices = build_cluster(cluster, session.base).n_devices
    attention_tp = spec.parallel.attention.tp if spec.parallel.attention else 1
    expert_tp = spec.parallel.experts.tp if spec.parallel.experts else 1
    for what, tp in (("attention", attention_tp), ("experts", expert_tp)):
        if n_devices % tp:
            devices = f"the {n_devices} devices of {nodes} x {offer.node}"
            raise ScenarioError(f"parallel.{what}: tp {tp} does not divide {devices}; leave it out of the catalogue")
    parallel = ParallelSpec(
        attention=AttentionParallelSpec(dp=n_devices // attention_tp, tp=attention_tp),
        experts=ExpertParallelSpec(ep=n_devices // expert_tp, tp=expert_tp),
    )
    return replace(Plan.of(spec), cluster=cluster, parallel=parallel)


def _best(groups: Sequence[Group], budget: BudgetSpec, money_usd: float) -> Purchase:
    """Counts y of groups that maximise the sum of throughputs, within money, power, rack units and nodes on offer."""
    gains = np.array([group.tokens_per_s for group in groups])
    limits = {"money": money_usd, "power": budget.power, "rack_units": budget.rack_units}
    rows = [([group.amount(name) for group in groups], limit) for name, limit in limits.items() if limit is not None]
    for offer in {id(group.offer): group.offer for group in groups}.values():
        rows.append(([group.nodes if group.offer is offer else 0 for group in groups], offer.most))
    matrix, most = np.array([row for row, _ in rows], dtype=float), np.array([limit for _, limit in rows], dtype=float)
    solved = scipy.optimize.milp(
        -gains / gains.max() + CHEAPER_FRAC * matrix[0] / matrix[0].max(),
        constraints=scipy.optimize.LinearConstraint(matrix, ub=most),
        integrality=np.ones(len(groups), dtype=np.int64),
        bounds=scipy.optimize.Bounds(0, np.inf),
    )
    if solved.x is None:
        raise ScenarioError(f"the integer programme of the purchase failed: {solved.message}")
    counts = np.round(solved.x).astype(int)
    names = [name for name, limit in limits.items() if limit is not None]
    left = {name: most[row] - float(matrix[row] @ counts) for row, name in enumerate(names)}
    tight = tuple(name for name in names if left[name] < min(group.amount(name) for group in groups) - 1e-9)
    return Purchase(
        counts=tuple((group, int(count)) for group, count in zip(groups, counts, strict=True) if count),
        money_usd=money_usd,
        tokens_per_s=float(gains @ counts),
        limits=tight,
    )


def _needs(group: Group) -> str:
    parts = [f"{group.offer.power * group.nodes:,.0f} W"] if group.offer.power else []
    parts += [f"{group.offer.rack_units * group.nodes} rack units"] if group.offer.rack_units else []
    return ", ".join(parts) or f"{group.nodes} nodes"
