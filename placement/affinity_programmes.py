"""Affinity as integer programmes: ExFlow's published one, and one strengthened by transport constraints.

Both are exact if given time. ExFlow's linear relaxation is 0 crossings (set every x to 1/G), so that it proves nothing
and stays at random quality; the transport programme's relaxation is the b-matching bound.
Assumes context-coherent execution, as `affinity` does. x[l, e, g] = 1: expert e of layer l lies on rank g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pulp

from placement.affinity import IntArray, aligned, check_affinity, experts_per_rank, tokens_that_stay
from placement.affinity_bounds import affinity_bound
from placement.plan import FloatArray
from placement.programmes import binaries, fractions, solve_programme, total, values_of, weighted_sum

FormName = Literal["exflow", "transport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinitySolution:
    """A placement with what its programme proved.

    rank_of_expert  intp[layer, expert].
    stay            tokens that stay [tokens], counted from the placement, not taken from the solver.
    bound           no placement keeps more [tokens].
    status          "optimal", or "time limit" where the better of start and incumbent was returned.
    """

    rank_of_expert: IntArray
    stay: float
    bound: float
    status: Literal["optimal", "time limit"]


def solve_affinity(
    transitions: FloatArray, n_ranks: int, start: IntArray, *, form: FormName, time_limit_s: float
) -> AffinitySolution:
    """The best placement that the programme of `form` finds from `start` intp[layer, expert] in time, and its bound.

    Never worse than `start`. Raises PlacementError where no solver is installed.
    """
    check_affinity(transitions, n_ranks)
    first = _in_symmetry_order(aligned(transitions, start, n_ranks))
    build = transport_programme if form == "transport" else exflow_programme
    programme, placed = build(transitions, n_ranks)
    outcome = solve_programme(programme, time_limit_s=time_limit_s, start=_start_values(transitions, first, form))
    best, stay = first, tokens_that_stay(transitions, first)
    if outcome.found:
        found = np.asarray(values_of(placed).argmax(axis=2), dtype=np.intp)
        stay_found = tokens_that_stay(transitions, found)
        best, stay = (found, stay_found) if stay_found > stay else (best, stay)
    proved = transitions.sum() - outcome.bound if form == "exflow" else outcome.bound
    bound = max(min(proved, affinity_bound(transitions, n_ranks)), stay)
    return AffinitySolution(rank_of_expert=best, stay=stay, bound=bound, status=_status(outcome.status))


def exflow_programme(transitions: FloatArray, n_ranks: int) -> tuple[Any, Any]:
    """ExFlow's programme and its x[layer, expert, rank]: minimise crossings, one per transition.

    min sum_l sum_ef A_l[e, f] R_lef. Source: arXiv 2401.08383, section 4, and the authors' solver; identical tokens
    share one R here, which changes no optimum.
    """
    programme = pulp.LpProblem("exflow", pulp.LpMinimize)
    placed = _placed(programme, transitions, n_ranks)
    crossing = {
        (layer, e, f): programme.add_variable(f"R_{layer}_{e}_{f}", 0, 1)
        for layer, e, f in np.argwhere(transitions > 0).tolist()
    }
    programme += weighted_sum(crossing.values(), (transitions[key] for key in crossing)), "crossings"
    _place_each_once(programme, placed)
    _fill_ranks(programme, placed)
    _crossings_count(programme, placed, crossing)
    _order_ranks(programme, placed)
    return programme, placed


def transport_programme(transitions: FloatArray, n_ranks: int) -> tuple[Any, Any]:
    """The strengthened programme and its x[layer, expert, rank]: maximise tokens that stay.

    max sum_l sum_ef A_l[e, f] sum_g z_lefg, with z = x[l, e, g] x[l + 1, f, g] by the reformulation-linearisation
    technique (Adams and Sherali 1986): each cardinality row times each x.
    """
    programme = pulp.LpProblem("transport", pulp.LpMaximize)
    placed = _placed(programme, transitions, n_ranks)
    n_pairs, n_experts, _ = transitions.shape
    together = fractions(programme, "z", (n_pairs, n_experts, n_experts, n_ranks))
    programme += weighted_sum(together.ravel(), np.repeat(transitions.ravel(), n_ranks)), "stay"
    _place_each_once(programme, placed)
    _fill_ranks(programme, placed)
    _together_needs_both(programme, placed, together)
    _transport_rows(programme, placed, together)
    _order_ranks(programme, placed)
    return programme, placed


def _placed(programme: Any, transitions: FloatArray, n_ranks: int) -> Any:
    n_pairs, n_experts, _ = transitions.shape
    return binaries(programme, "x", (n_pairs + 1, n_experts, n_ranks))


def _place_each_once(programme: Any, placed: Any) -> None:
    """sum_g x[l, e, g] = 1."""
    for layer, expert in np.ndindex(*placed.shape[:2]):
        programme += total(placed[layer, expert]) == 1, f"once_{layer}_{expert}"


def _fill_ranks(programme: Any, placed: Any) -> None:
    """sum_e x[l, e, g] = S."""
    n_layers, n_experts, n_ranks = placed.shape
    for layer, rank in np.ndindex(n_layers, n_ranks):
        room = experts_per_rank(n_experts, n_ranks)
        programme += total(placed[layer, :, rank]) == room, f"fill_{layer}_{rank}"


def _crossings_count(programme: Any, placed: Any, crossing: Any) -> None:
    """R_lef >= x[l, e, g] - x[l + 1, f, g] and R_lef >= x[l + 1, f, g] - x[l, e, g]."""
    for (layer, e, f), crosses in crossing.items():
        for rank in range(placed.shape[2]):
            here, there = placed[layer, e, rank], placed[layer + 1, f, rank]
            programme += crosses - here + there >= 0, f"leave_{layer}_{e}_{f}_{rank}"
            programme += crosses + here - there >= 0, f"enter_{layer}_{e}_{f}_{rank}"


def _together_needs_both(programme: Any, placed: Any, together: Any) -> None:
    """z_lefg <= x[l, e, g] and z_lefg <= x[l + 1, f, g]."""
    for (layer, e, f, rank), both in np.ndenumerate(together):
        programme += both - placed[layer, e, rank] <= 0, f"first_{layer}_{e}_{f}_{rank}"
        programme += both - placed[layer + 1, f, rank] <= 0, f"second_{layer}_{e}_{f}_{rank}"


def _transport_rows(programme: Any, placed: Any, together: Any) -> None:
    """sum_f z_lefg = S x[l, e, g] and sum_e z_lefg = S x[l + 1, f, g]."""
    n_pairs, n_experts, _, n_ranks = together.shape
    room = experts_per_rank(n_experts, n_ranks)
    for layer, expert, rank in np.ndindex(n_pairs, n_experts, n_ranks):
        here, there = placed[layer, expert, rank], placed[layer + 1, expert, rank]
        programme += total(together[layer, expert, :, rank]) - room * here == 0, f"from_{layer}_{expert}_{rank}"
        programme += total(together[layer, :, expert, rank]) - room * there == 0, f"to_{layer}_{expert}_{rank}"


def _order_ranks(programme: Any, placed: Any) -> None:
    """x[0, e, g] = 0 for g > e: ranks are alike, and named in the order in which the first layer's experts use them."""
    _, n_experts, n_ranks = placed.shape
    for expert in range(min(n_experts, n_ranks)):
        for rank in range(expert + 1, n_ranks):
            programme += placed[0, expert, rank] == 0, f"order_{expert}_{rank}"


def _in_symmetry_order(ranks: IntArray) -> IntArray:
    """The same placement with ranks named in the order in which experts of the first layer use them."""
    seen = list(dict.fromkeys(ranks[0].tolist()))
    name = np.empty(len(seen), np.intp)
    name[seen] = np.arange(len(seen))
    return np.asarray(name[ranks], dtype=np.intp)


def _start_values(transitions: FloatArray, ranks: IntArray, form: FormName) -> dict[str, float]:
    """Values of all variables that are 1 in the placement `ranks`, by name."""
    values = {f"x_{layer}_{expert}_{rank}": 1.0 for (layer, expert), rank in np.ndenumerate(ranks)}
    if form == "exflow":
        apart = (transitions > 0) & (ranks[:-1, :, None] != ranks[1:, None, :])
        return values | {f"R_{layer}_{e}_{f}": 1.0 for layer, e, f in np.argwhere(apart).tolist()}
    same = np.argwhere(ranks[:-1, :, None] == ranks[1:, None, :]).tolist()
    return values | {f"z_{layer}_{e}_{f}_{ranks[layer, e]}": 1.0 for layer, e, f in same}


def _status(status: str) -> Literal["optimal", "time limit"]:
    return "optimal" if status == "optimal" else "time limit"
