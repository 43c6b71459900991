"""One option for every item within shared limits: the multiple-choice knapsack, with its linear bound.

Spare slots per layer, bits per expert, the memory tier of each expert and moves per layer are this one programme
(`budgets`, `migration`). x[i, o] = 1: item i takes option o.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pulp
from numpy.typing import NDArray

from placement.plan import FloatArray
from placement.programmes import binaries, solve_programme, total, values_of, weighted_sum
from scenarios.errors import PlacementError, PlacementInfeasible

IntArray = NDArray[np.intp]

MOST_WHOLE = 2.0**53  # larger floats are whole whatever they were made of
ROUNDING = 1e-12  # relative; a greedy choice this close to the relaxation is optimal


@dataclass(frozen=True, slots=True, kw_only=True)
class AtLeast:
    """At least `count` of `items` take option `option`."""

    items: tuple[int, ...]
    option: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An option for every item, intp[item], and its `cost`.

    bound    no choice costs less, as the search proved.
    relaxed  optimum of the linear relaxation, below which no choice costs either; all in the unit of the costs.
    status   "optimal", or "time limit" where the best choice found in time was returned.
    """

    option: IntArray
    cost: float
    bound: float
    relaxed: float
    status: Literal["optimal", "time limit"]

    @property
    def gap(self) -> float:
        """(cost - bound) / bound; 0 where both agree, also at a bound of 0 or less."""
        excess = self.cost - self.bound
        return 0.0 if excess <= 0 else excess / self.bound if self.bound > 0 else float("inf")


def choose(
    costs: FloatArray,
    weights: FloatArray,
    limits: FloatArray,
    *,
    at_least: Sequence[AtLeast] = (),
    time_limit_s: float = 30.0,
) -> Choice:
    """The cheapest option of every item within the limits.

    costs    float64[item, option]            inf where an item does not have an option.
    weights  float64[resource, item, option]  what an option takes of each resource, in the resource's unit.
    limits   float64[resource]                what there is.

    Raises PlacementInfeasible where no choice keeps the limits (the message says by how much the first one falls
    short), PlacementError where no solver is installed, or none was found within `time_limit_s` [s].
    """
    _check(costs, weights, limits)
    weights, limits = _that_bind(costs, weights, limits)
    limits = np.array([_attainable(limit, weight) for limit, weight in zip(limits, weights, strict=True)])
    start, relaxed = (None, -np.inf) if at_least or len(limits) > 1 else cheapest_by_hull(costs, weights[0], limits[0])
    if start is not None and _cost(costs, start) - relaxed <= ROUNDING * abs(relaxed):
        cost = _cost(costs, start)
        return Choice(option=start, cost=cost, bound=min(relaxed, cost), relaxed=min(relaxed, cost), status="optimal")
    programme, chosen = knapsack_programme(costs, weights, limits, at_least)
    if start is None:
        relaxed = solve_programme(programme, time_limit_s=time_limit_s, relaxed=True).bound
    values = None if start is None else {f"x_{i}_{o}": 1.0 for i, o in enumerate(start.tolist())}
    outcome = solve_programme(programme, time_limit_s=time_limit_s, start=values)
    if outcome.status == "infeasible":
        raise PlacementInfeasible("no choice keeps the limits together; raise one, or ask for fewer at least")
    found = [] if start is None else [start]
    if outcome.found:
        found.append(np.asarray(values_of(chosen).argmax(axis=1), dtype=np.intp))
    if not found:
        raise PlacementError(f"no choice found within {time_limit_s:g} s; give more time")
    option = min(found, key=lambda choice: _cost(costs, choice))
    cost = _cost(costs, option)
    status: Literal["optimal", "time limit"] = "optimal" if outcome.status == "optimal" else "time limit"
    bound = min(max(outcome.bound, relaxed), cost)
    return Choice(option=option, cost=cost, bound=bound, relaxed=min(relaxed, cost), status=status)


def knapsack_programme(
    costs: FloatArray, weights: FloatArray, limits: FloatArray, at_least: Sequence[AtLeast] = ()
) -> tuple[Any, Any]:
    """The programme and its x[item, option]: min sum_i sum_o cost[i, o] x[i, o]."""
    programme = pulp.LpProblem("knapsack", pulp.LpMinimize)
    chosen = binaries(programme, "x", costs.shape)
    finite = np.where(np.isfinite(costs), costs, 0.0)
    programme += weighted_sum(chosen.ravel(), finite.ravel()), "cost"
    _one_each(programme, chosen)
    _only_what_exists(programme, chosen, costs)
    _within_limits(programme, chosen, weights, limits)
    _enough_of(programme, chosen, at_least)
    return programme, chosen


def cheapest_by_hull(costs: FloatArray, weights: FloatArray, limit: float) -> tuple[IntArray | None, float]:
    """A choice within one limit, intp[item], and the optimum of the linear relaxation, both by convex hulls.

    costs, weights float64[item, option]. Steps along the lower hull of every item's (weight, cost), taken by saving per
    weight until the limit is met, solve the relaxation (Sinha and Zoltners 1979); whole steps alone are the choice.
    None and infinite where even the lightest options are too heavy.
    """
    hulls = [_hull(cost, weight) for cost, weight in zip(costs, weights, strict=True)]
    option = np.array([hull[0] for hull in hulls], dtype=np.intp)
    left = float(limit - weights[np.arange(len(option)), option].sum())
    if left < 0:
        return None, float("inf")
    steps = [
        ((costs[i, a] - costs[i, b]) / (weights[i, b] - weights[i, a]), i, a, b)
        for i, hull in enumerate(hulls)
        for a, b in pairwise(hull)
    ]
    relaxed, full = _cost(costs, option), False
    for saving, item, before, after in sorted(steps, key=lambda step: (-step[0], step[1])):
        more = weights[item, after] - weights[item, before]
        relaxed -= 0.0 if full else saving * min(more, left)
        full = full or more > left
        if option[item] == before and more <= left:
            option[item], left = after, left - more
    return option, float(relaxed)


def _hull(cost: FloatArray, weight: FloatArray) -> list[int]:
    """Options on the lower convex hull of (weight, cost), from the lightest to the cheapest, ascending in weight."""
    hull: list[int] = []
    for option in sorted(np.flatnonzero(np.isfinite(cost)).tolist(), key=lambda o: (weight[o], cost[o])):
        if hull and cost[option] >= cost[hull[-1]]:
            continue
        while len(hull) > 1 and _saving(hull[-2], hull[-1], cost, weight) <= _saving(hull[-1], option, cost, weight):
            hull.pop()
        hull.append(option)
    return hull


def _saving(before: int, after: int, cost: FloatArray, weight: FloatArray) -> float:
    more = float(weight[after] - weight[before])
    return float(cost[before] - cost[after]) / more if more > 0 else float("inf")


def _one_each(programme: Any, chosen: Any) -> None:
    """sum_o x[i, o] = 1."""
    for item, row in enumerate(chosen):
        programme += total(row) == 1, f"one_{item}"


def _only_what_exists(programme: Any, chosen: Any, costs: FloatArray) -> None:
    """x[i, o] = 0 where item i does not have option o."""
    for item, option in np.argwhere(~np.isfinite(costs)):
        programme += chosen[item, option] == 0, f"absent_{item}_{option}"


def _within_limits(programme: Any, chosen: Any, weights: FloatArray, limits: FloatArray) -> None:
    """sum_i sum_o weight[r, i, o] x[i, o] <= limit[r], both over the limit so that bytes and slots scale alike."""
    for resource, limit in enumerate(limits):
        scale = 1.0 / limit if limit > 0 else 1.0
        taken = weighted_sum(chosen.ravel(), (weights[resource] * scale).ravel())
        programme += taken <= limit * scale, f"limit_{resource}"


def _enough_of(programme: Any, chosen: Any, at_least: Sequence[AtLeast]) -> None:
    """sum over items of x[i, option] >= count."""
    for number, rule in enumerate(at_least):
        programme += total(chosen[list(rule.items), rule.option]) >= rule.count, f"at_least_{number}"


def _cost(costs: FloatArray, option: IntArray) -> float:
    return float(costs[np.arange(len(costs)), option].sum())


def _attainable(limit: float, weights: FloatArray) -> float:
    """The limit, or the multiple below it of what all weights are multiples of: the rest can never be used."""
    if not (weights == np.rint(weights)).all() or weights.max() > MOST_WHOLE:
        return float(limit)
    unit = max(int(np.gcd.reduce(weights.astype(np.int64), axis=None)), 1)
    return float(np.floor(limit / unit) * unit)


def _that_bind(costs: FloatArray, weights: FloatArray, limits: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weights and limits of the resources that the heaviest options exceed together; of the first where none does."""
    heaviest = np.where(np.isfinite(costs), weights, 0.0).max(axis=2).sum(axis=1)
    kept = np.flatnonzero(heaviest > limits)
    kept = kept if len(kept) else np.zeros(1, np.intp)
    return weights[kept], limits[kept]


def _check(costs: FloatArray, weights: FloatArray, limits: FloatArray) -> None:
    if costs.ndim != 2 or costs.size == 0 or weights.shape != (len(limits), *costs.shape):
        raise PlacementError(
            f"costs {costs.shape}, weights {weights.shape} and limits {limits.shape} do not fit: "
            "[item, option], [resource, item, option], [resource]"
        )
    if np.isnan(costs).any() or not np.isfinite(weights).all() or (weights < 0).any():
        raise PlacementError("costs must be numbers (inf: no such option), weights finite and >= 0")
    exists = np.isfinite(costs)
    if not exists.any(axis=1).all():
        raise PlacementInfeasible(f"item {int((~exists.any(axis=1)).argmax())} has no option at all")
    for resource, limit in enumerate(limits):
        least = float(np.where(exists, weights[resource], np.inf).min(axis=1).sum())
        if least > limit:
            raise PlacementInfeasible(
                f"the lightest options take {least:,.6g} of resource {resource}, {limit:,.6g} are there: "
                f"{least - limit:,.6g} short; raise the limit, or offer lighter options"
            )
