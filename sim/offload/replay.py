"""Replay of a device's slots over steps. All layers and ranks advance together; an event is what one step asks of one.

Event-atomic: a step's experts are judged against the slots as they stand before it, then the missed ones are served,
then those of highest priority keep the slots. Before that, copies that were asked for ahead take theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.offload.wanted import Mask, Scores

Split = Callable[[int, Mask, Mask], Mask]
"""(step, hits, misses as bool[row, place]) -> those of the misses that are copied; the host computes the others."""


class Keeper(Protocol):
    """Who keeps a slot. Masks are bool[row, place]; of the priorities float64[row, place] the highest stay."""

    def after(self, step: int, used: Mask, loads: Mask) -> Scores:
        """Priorities after a step, of those with a slot and of those that were copied for it."""

    def kept(self, step: int, cached: Mask) -> None:
        """Take note of who has a slot: at first, after copies ahead, and after a step."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Priorities float64[step, row, place] that do not depend on what the slots hold."""

    priorities: Scores

    def after(self, step: int, _used: Mask, _loads: Mask) -> Scores:
        """Those of the step."""
        found: Scores = self.priorities[step]
        return found

    def kept(self, _step: int, _cached: Mask) -> None:
        """Nothing to note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What one replay is asked. Rows are independent caches.

    used        bool[step, row, place]; ahead: copies asked for before the step's use, or None.
    keeper      who stays; ties float64[row, place] in [0, 1) decide among equals.
    slots       int64[row]; admits: see `Rule`; placed: bool[row, place].
    cancels     whether what came ahead in vain loses its slot in the same step.
    """

    used: Mask
    ahead: Mask | None
    keeper: Keeper
    ties: Scores
    slots: NDArray[np.int64]
    placed: Mask
    admits: bool
    cancels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What became of every use, bool[step, row, place]: it was resident, came ahead, was loaded, or hosted.

    fetched_ahead  copies ahead, useless ones included.
    """

    resident: Mask
    coming: Mask
    loaded: Mask
    hosted: Mask
    fetched_ahead: Mask


TIE = 1e-7  # times a tie break below 1: less than any difference between priorities of rules, which count


def replay(requests: Requests, split: Split | None = None) -> Replayed:
    """What the slots do with all steps; without `split` every missed expert is copied."""
    shape = requests.used.shape
    resident, coming, loaded, fetched = (np.zeros(shape, bool) for _ in range(4))
    hosted = np.zeros(shape, bool)
    ties = requests.ties * TIE
    keeper, cached = requests.keeper, highest(requests.placed, ties, requests.slots)
    keeper.kept(-1, cached)
    before = ties
    for step, used in enumerate(requests.used):
        if requests.ahead is not None:
            asked = requests.ahead[step]
            kept = highest(cached | asked, _raised(before, asked), requests.slots)
            fetched[step] = kept & ~cached
            cached = kept
            keeper.kept(step, cached)
        hit, missed = used & cached, used & ~cached
        loads = missed if split is None else split(step, hit, missed)
        if requests.cancels:
            cached = cached & (used | ~fetched[step])
        coming[step] = hit & fetched[step]
        resident[step] = hit & ~fetched[step]
        loaded[step], hosted[step] = loads, missed & ~loads
        before = keeper.after(step, used, loads) + ties
        ranked = _raised(before, loads) if requests.admits else before
        cached = highest(cached | loads, ranked, requests.slots)
        keeper.kept(step, cached)
    return Replayed(resident=resident, coming=coming, loaded=loaded, hosted=hosted, fetched_ahead=fetched)


def _raised(scores: Scores, entries: Mask) -> Scores:
    """Scores with the entries above all others, in their own order."""
    above = scores.max() - scores.min() + 1
    raised: Scores = np.where(entries, scores + above, scores)
    return raised


def highest(candidates: Mask, scores: Scores, slots: NDArray[np.int64]) -> Mask:
    """The `slots` int64[row] candidates of highest score of every row, bool[row, place]; scores of a row all differ."""
    n_places = scores.shape[-1]
    ranked = np.where(candidates, scores, -np.inf)
    last = n_places - np.minimum(slots, n_places)
    within = np.minimum(last, n_places - 1)
    ranked_at = np.partition(ranked, np.unique(within), axis=-1)
    threshold = np.where(last < n_places, np.take_along_axis(ranked_at, within[:, None], axis=-1)[:, 0], np.inf)
    kept: Mask = candidates & (scores >= threshold[:, None])
    return kept
