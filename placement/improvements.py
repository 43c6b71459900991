"""One layer's plan improved change by change from the plan in force, and how many copies each step has moved.

Two changes: two experts of two ranks trade places, or a spare slot turns to another expert. Each step takes the one
that saves most load of the busiest rank, mean over batches, per copy that it moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.plan import FloatArray

IntArray = NDArray[np.intp]
Slots = tuple[tuple[int, int], ...]  # (slot, its new expert)

GAIN = 1e-9  # relative; a smaller gain is rounding, and would move weights for nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A plan intp[slot], its mean busiest rank's load [tokens], and the copies moved since the plan in force."""

    expert_of_slot: IntArray
    busiest: float
    moves: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """A plan while it is improved: copies held intp[expert, rank] now and at the origin, loads by batch and rank."""

    loads: FloatArray
    slots: IntArray
    held: IntArray
    origin: IntArray
    rank_load: FloatArray
    busiest: float

    @property
    def copies(self) -> IntArray:
        return np.asarray(self.held.sum(axis=1), dtype=np.intp)

    @property
    def moves(self) -> int:
        return int(((self.held > 0) & (self.origin == 0)).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """Changes of one slot: trades with every other slot, or turns to every expert.

    busiest  float64[candidate]  mean busiest rank's load after it; inf where it is not allowed.
    moved    intp[candidate]     copies that it moves; negative where it takes moves back.
    """

    slot: int
    trades: bool
    busiest: FloatArray
    moved: IntArray


def copies_held(expert_of_slot: IntArray, n_ranks: int, n_experts: int) -> IntArray:
    """Copies of each expert on each rank, intp[expert, rank], from intp[slot]; slot p on rank p // (slots / ranks)."""
    held = np.zeros((n_experts, n_ranks), np.intp)
    np.add.at(held, (expert_of_slot, np.arange(len(expert_of_slot)) // (len(expert_of_slot) // n_ranks)), 1)
    return held


def improvements(loads: FloatArray, current: IntArray, n_ranks: int, *, most_moves: int) -> list[Step]:
    """Plans from `current` intp[slot] on, each with a lower busiest rank than the last, within `most_moves` moves.

    loads  float64[batch, expert]  tokens; copies of an expert share them evenly.
    """
    origin = copies_held(current, n_ranks, loads.shape[1])
    state = _state(loads, current, origin)
    steps = [Step(expert_of_slot=state.slots, busiest=state.busiest, moves=0)]
    while True:
        change = _best(state, most_moves)
        if change is None:
            return steps
        slots = state.slots.copy()
        for slot, expert in change:
            slots[slot] = expert
        state = _state(loads, slots, origin)
        steps.append(Step(expert_of_slot=slots, busiest=state.busiest, moves=state.moves))


def _state(loads: FloatArray, slots: IntArray, origin: IntArray) -> _State:
    held = copies_held(slots, origin.shape[1], origin.shape[0])
    rank_load = (loads / held.sum(axis=1)) @ held
    busiest = float(rank_load.max(axis=1).mean())
    return _State(loads=loads, slots=slots, held=held, origin=origin, rank_load=rank_load, busiest=busiest)


def _best(state: _State, most_moves: int) -> Slots | None:
    """The change that saves most per moved copy within the moves; None where none saves."""
    best: Slots | None = None
    best_rate = 0.0
    left = most_moves - state.moves
    for candidates in (*_trades(state), *_turns(state)):
        saved = np.where(candidates.moved <= left, state.busiest - candidates.busiest, -np.inf)
        # What moves nothing, or takes a move back, costs nothing: it is weighed as half a move.
        rate = np.where(saved > GAIN * state.busiest, saved / np.maximum(candidates.moved, 0.5), 0.0)
        place = int(rate.argmax())
        if rate[place] > best_rate:
            best, best_rate = _change(state, candidates, place), float(rate[place])
    return best


def _change(state: _State, candidates: _Candidates, place: int) -> Slots:
    """The slots that candidate number `place` changes: of a trade both, of a turn one."""
    if not candidates.trades:
        return ((candidates.slot, place),)
    return ((candidates.slot, int(state.slots[place])), (place, int(state.slots[candidates.slot])))


def _trades(state: _State) -> list[_Candidates]:
    """For every slot of a rank that is busiest in some batch: trading its expert with that of every other slot."""
    n_ranks = state.held.shape[1]
    room = len(state.slots) // n_ranks
    rank_of = np.arange(len(state.slots)) // room
    share = state.loads / state.copies
    peaks = -np.sort(-state.rank_load, axis=1)[:, :3]
    order = np.argsort(-state.rank_load, axis=1, kind="stable")[:, :3]
    found: list[_Candidates] = []
    for hot in np.unique(state.rank_load.argmax(axis=1)).tolist():
        for slot in range(hot * room, (hot + 1) * room):
            mine = int(state.slots[slot])
            change = share[:, state.slots] - share[:, [mine]]
            rest = _peak_without(peaks, order, hot, rank_of)
            here = state.rank_load[:, [hot]] + change
            there = state.rank_load[:, rank_of] - change
            busiest = np.maximum(np.maximum(here, there), rest).mean(axis=0)
            new = (state.held[mine, rank_of] == 0) & (state.held[state.slots, hot] == 0)
            moved = _added(state, mine, rank_of) + _added(state, state.slots, hot)
            moved = moved - _taken_back(state, mine, hot) - _taken_back(state, state.slots, rank_of)
            found.append(_Candidates(slot=slot, trades=True, busiest=np.where(new, busiest, np.inf), moved=moved))
    return found


def _turns(state: _State) -> list[_Candidates]:
    """For every slot whose expert has another copy: turning it to every expert that its rank does not hold."""
    n_experts, n_ranks = state.held.shape
    room = len(state.slots) // n_ranks
    copies = state.copies
    less = (state.loads / (copies + 1) - state.loads / copies)[:, :, None] * state.held
    found: list[_Candidates] = []
    for slot in np.flatnonzero(copies[state.slots] > 1).tolist():
        old, rank = int(state.slots[slot]), slot // room
        tokens = state.loads[:, old]
        without = state.rank_load + (tokens / (copies[old] - 1) - tokens / copies[old])[:, None] * state.held[old]
        without[:, rank] -= tokens / (copies[old] - 1)
        after = without[:, None, :] + less
        after[:, :, rank] += state.loads / (copies + 1)
        new = (state.held[:, rank] == 0) & (np.arange(n_experts) != old)
        busiest = np.where(new, after.max(axis=2).mean(axis=0), np.inf)
        moved = _added(state, np.arange(n_experts), rank) - _taken_back(state, old, rank)
        found.append(_Candidates(slot=slot, trades=False, busiest=busiest, moved=moved))
    return found


def _peak_without(peaks: FloatArray, order: IntArray, hot: int, rank_of: IntArray) -> FloatArray:
    """Largest load of any rank but `hot` and that of each slot, float64[batch, slot]; 0 where there is no third."""
    rest = np.zeros((len(peaks), len(rank_of)))
    for place in reversed(range(peaks.shape[1])):
        other = (order[:, [place]] != hot) & (order[:, [place]] != rank_of[None, :])
        rest = np.where(other, peaks[:, [place]], rest)
    return rest


def _added(state: _State, expert: IntArray | int, rank: IntArray | int) -> IntArray:
    """1 where the rank had no copy of the expert in the plan in force."""
    return np.asarray(state.origin[expert, rank] == 0, dtype=np.intp)


def _taken_back(state: _State, expert: IntArray | int, rank: IntArray | int) -> IntArray:
    """1 where the rank's only copy of the expert was moved there before, so that removing it spares a move."""
    return np.asarray((state.origin[expert, rank] == 0) & (state.held[expert, rank] == 1), dtype=np.intp)
