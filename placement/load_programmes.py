"""Replication and placement of one layer as one integer programme: the smallest mean load of the busiest rank.

Exact if given time; a referee for `balance` and `saa` rather than a rival. Copies of an expert share its tokens evenly.
y[e, c, g]: copies of expert e on rank g where it has c copies, else 0. u[e, c] = 1: expert e has c copies. Several on
one rank are allowed, as in EPLB's plans: they waste a slot, but no plan may escape the bound.

loads           float64[scenario, expert]  tokens of one layer; one scenario is plain load balance.
expert_of_slot  intp[slot]                 slot p lies on rank p // (slots / ranks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pulp
from numpy.typing import NDArray

from placement.bounds import busiest_rank_bound
from placement.improvements import copies_held
from placement.plan import FloatArray
from placement.programmes import binaries, integers, solve_programme, total, values_of, weighted_sum
from scenarios.errors import PlacementError

IntArray = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSolution:
    """A layer's plan: `busiest` mean load of its busiest rank and `bound`, below which no plan is [tokens].

    status "optimal" where the programme was closed, "time limit" where start or incumbent was returned.
    """

    expert_of_slot: IntArray
    busiest: float
    bound: float
    status: Literal["optimal", "time limit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveLimit:
    """At most `moves` copies may lie where `current` intp[slot] has no copy of their expert on that rank."""

    current: IntArray
    moves: int


def solve_load(
    loads: FloatArray, start: IntArray, n_ranks: int, *, time_limit_s: float, limit: MoveLimit | None = None
) -> LoadSolution:
    """The best plan of a layer that the programme finds from `start` in time, and its bound; never worse than `start`.

    Raises PlacementError where no solver is installed, or `start` itself moves more than `limit` allows.
    """
    held = copies_held(start, n_ranks, loads.shape[1])
    if limit is not None and _moves(held, limit) > limit.moves:
        raise PlacementError(f"the start moves {_moves(held, limit)} copies, the limit is {limit.moves}; start from it")
    programme, copies = load_programme(loads, len(start), n_ranks, limit)
    first = held if limit is not None else _in_symmetry_order(held, loads)
    outcome = solve_programme(programme, time_limit_s=time_limit_s, start=_start_values(loads, first))
    best, busiest = start, busiest_load(loads, start, n_ranks)
    if outcome.found:
        found = _slots(np.rint(values_of(copies).sum(axis=1)).astype(np.intp))
        busiest_found = busiest_load(loads, found, n_ranks)
        best, busiest = (found, busiest_found) if busiest_found < busiest else (best, busiest)
    counted = float(busiest_rank_bound(loads, n_slots=len(start), n_ranks=n_ranks).mean())
    bound = min(max(outcome.bound, counted), busiest)
    status: Literal["optimal", "time limit"] = "optimal" if outcome.status == "optimal" else "time limit"
    return LoadSolution(expert_of_slot=best, busiest=busiest, bound=bound, status=status)


def busiest_load(loads: FloatArray, expert_of_slot: IntArray, n_ranks: int) -> float:
    """Mean over scenarios of the busiest rank's load [tokens], copies sharing evenly."""
    share = loads / np.maximum(np.bincount(expert_of_slot, minlength=loads.shape[1]), 1)
    return float(share[:, expert_of_slot].reshape(len(loads), n_ranks, -1).sum(axis=2).max(axis=1).mean())


def load_programme(loads: FloatArray, n_slots: int, n_ranks: int, limit: MoveLimit | None = None) -> tuple[Any, Any]:
    """The programme and its y[expert, copies - 1, rank]: min mean_s z_s."""
    programme = pulp.LpProblem("load", pulp.LpMinimize)
    n_scenarios, n_experts = loads.shape
    most = n_slots - n_experts + 1
    copies = integers(programme, "y", (n_experts, most, n_ranks), np.arange(1, most + 1)[None, :, None])
    number = binaries(programme, "u", (n_experts, most))
    busiest = [programme.add_variable(f"z_{s}", 0) for s in range(n_scenarios)]
    programme += weighted_sum(busiest, [1.0 / n_scenarios] * n_scenarios), "mean_busiest"
    _choose_number(programme, number)
    _place_copies(programme, copies, number)
    _fill_ranks(programme, copies, n_slots // n_ranks)
    _busiest_is_above(programme, copies, busiest, loads)
    if limit is None:
        _order_ranks(programme, copies, loads)
    else:
        _move_few(programme, copies, n_slots, limit)
    return programme, copies


def _choose_number(programme: Any, number: Any) -> None:
    """sum_c u[e, c] = 1."""
    for expert, row in enumerate(number):
        programme += total(row) == 1, f"number_{expert}"


def _place_copies(programme: Any, copies: Any, number: Any) -> None:
    """sum_g y[e, c, g] = c u[e, c]."""
    for (expert, index), chosen in np.ndenumerate(number):
        programme += total(copies[expert, index]) - (index + 1) * chosen == 0, f"copies_{expert}_{index}"


def _fill_ranks(programme: Any, copies: Any, room: int) -> None:
    """sum_{e, c} y[e, c, g] = S."""
    for rank in range(copies.shape[2]):
        programme += total(copies[:, :, rank].ravel()) == room, f"fill_{rank}"


def _busiest_is_above(programme: Any, copies: Any, busiest: list[Any], loads: FloatArray) -> None:
    """sum_{e, c} n_se / c y[e, c, g] <= z_s."""
    _, most, n_ranks = copies.shape
    for scenario, tokens in enumerate(loads):
        share = (tokens[:, None] / np.arange(1, most + 1)).ravel()
        for rank in range(n_ranks):
            on_rank = copies[:, :, rank].ravel()
            programme += weighted_sum(on_rank, share) - busiest[scenario] <= 0, f"busiest_{scenario}_{rank}"


def _order_ranks(programme: Any, copies: Any, loads: FloatArray) -> None:
    """sum_c y[e, c, g] = 0 for the i-th heaviest expert e, g > i; with replicas only sum_c y[e, c, 0] >= 1 for i = 0.

    Ranks are alike and named in the order in which the heaviest experts use them.
    """
    n_experts, most, n_ranks = copies.shape
    order = _heaviest_first(loads)
    if most > 1:
        programme += total(copies[order[0], :, 0]) >= 1, "order_0"
        return
    for place in range(min(n_experts, n_ranks)):
        for rank in range(place + 1, n_ranks):
            programme += copies[order[place], 0, rank] == 0, f"order_{place}_{rank}"


def _move_few(programme: Any, copies: Any, n_slots: int, limit: MoveLimit) -> None:
    """sum over (e, g) held now of sum_c y[e, c, g] >= slots - moves."""
    held = copies_held(limit.current, copies.shape[2], copies.shape[0])
    kept = [copy for e, g in np.argwhere(held > 0) for copy in copies[e, :, g]]
    programme += total(kept) >= n_slots - limit.moves, "moves"


def _heaviest_first(loads: FloatArray) -> IntArray:
    return np.argsort(-loads.mean(axis=0), kind="stable")


def _slots(held: IntArray) -> IntArray:
    """Slots intp[slot] of copies held intp[expert, rank]: rank by rank, experts ascending."""
    n_experts, n_ranks = held.shape
    return np.repeat(np.tile(np.arange(n_experts), n_ranks), held.T.ravel())


def _moves(held: IntArray, limit: MoveLimit) -> int:
    before = copies_held(limit.current, held.shape[1], held.shape[0])
    return int(held[before == 0].sum())


def _in_symmetry_order(held: IntArray, loads: FloatArray) -> IntArray:
    """The same plan with ranks named in the order in which the heaviest experts use them."""
    first_use = (held[_heaviest_first(loads)] > 0).argmax(axis=0)
    return held[:, np.argsort(first_use, kind="stable")]


def _start_values(loads: FloatArray, held: IntArray) -> dict[str, float]:
    """Values of the variables in the plan `held` that are not 0, by name."""
    number = held.sum(axis=1)
    values = {f"y_{e}_{number[e] - 1}_{g}": float(held[e, g]) for e, g in np.argwhere(held).tolist()}
    values |= {f"u_{e}_{n - 1}": 1.0 for e, n in enumerate(number.tolist())}
    busiest = ((loads / number) @ held).max(axis=1)
    return values | {f"z_{s}": float(z) for s, z in enumerate(busiest)}
