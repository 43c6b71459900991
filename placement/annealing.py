"""Simulated annealing over swaps of slots, every layer its own chain, all chains in step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from placement.plan import FloatArray

Index = NDArray[np.int64]
BLOCK = 256  # draws of one layer made at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooling:
    """Proposals of each layer, and how much worse a plan may get: `hot` at first, `cold` at last, relative to the cost.

    n_rounds      rounds; in each the best of `n_candidates` swaps of a layer is taken or refused.
    """

    n_rounds: int
    n_candidates: int
    hot: float
    cold: float


class SwapState(Protocol):
    """A plan that swaps change; slots of one rank lie side by side."""

    slots: NDArray[Any]
    """int[layer, slot], of any kind: what lies in each slot."""

    def cost(self) -> FloatArray:
        """Cost of every layer, float64[layer]."""
        ...

    def busiest(self) -> Index:
        """Rank of every layer that swaps should relieve, int64[layer]."""
        ...

    def allowed(self, first: Index, second: Index) -> NDArray[np.bool_]:
        """Whether slots int64[layer, candidate] may be swapped."""
        ...

    def swapped(self, first: Index, second: Index) -> tuple[FloatArray, Any]:
        """Cost after each swap alone, float64[layer, candidate], and what `take` needs of them."""
        ...

    def take(self, layers: Index, candidate: Index, first: Index, second: Index, made: Any) -> None:
        """Make the swap number `candidate` of some layers."""
        ...


def anneal(state: SwapState, n_ranks: int, cooling: Cooling, seeds: Sequence[Sequence[int]]) -> NDArray[Any]:
    """The best slots int[layer, slot] that the chains meet; `seeds` one entry a layer, so that layers are independent.

    Half of the swaps take a slot of the busiest rank, the others any slot; the second slot lies on another rank.
    """
    n_layers, n_slots = state.slots.shape
    room, layers = n_slots // n_ranks, np.arange(n_layers)
    cost = state.cost()
    best, best_cost, scale = state.slots.copy(), cost.copy(), cost.copy()
    for done, draw in enumerate(_draws(seeds, cooling.n_candidates, cooling.n_rounds)):
        warmth = cooling.hot * (cooling.cold / cooling.hot) ** (done / max(cooling.n_rounds - 1, 1))
        first = (draw[..., 0] * n_slots).astype(np.int64)
        busy = state.busiest()[:, None] * room + first % room
        first = np.where(draw[..., 1] < 0.5, busy, first)
        other = (draw[..., 2] * (n_slots - room)).astype(np.int64)
        second = ((first // room + 1) * room + other) % n_slots
        costs, made = state.swapped(first, second)
        costs = np.where(state.allowed(first, second), costs, np.inf)
        chosen = costs.argmin(axis=1)
        lowest = costs[layers, chosen]
        taken = np.flatnonzero(lowest - cost < warmth * scale * -np.log(draw[:, 0, 3]))
        if len(taken) == 0:
            continue
        pick = chosen[taken]
        state.take(taken, pick, first[taken, pick], second[taken, pick], made)
        cost[taken] = lowest[taken]
        better = np.flatnonzero(cost < best_cost)
        best[better], best_cost[better] = state.slots[better], cost[better]
    return best


def _draws(seeds: Sequence[Sequence[int]], n_candidates: int, n_rounds: int) -> Iterator[FloatArray]:
    """Numbers in (0, 1), float64[layer, candidate, 4] a round; those of a layer depend on its seed alone."""
    generators = [np.random.default_rng(seed) for seed in seeds]
    for begin in range(0, n_rounds, BLOCK):
        block = np.stack([1 - g.random((BLOCK, n_candidates, 4)) for g in generators], axis=1)
        yield from np.minimum(block[: n_rounds - begin], np.nextafter(1.0, 0.0))
