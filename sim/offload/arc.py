"""ARC (Megiddo and Modha, FAST 2003), one cache a row: recency and frequency in two lists whose shares adapt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.offload.wanted import Mask, Scores

ABSENT, ONCE, OFTEN, GONE_ONCE, GONE_OFTEN = range(5)
"""Lists T1 and T2 of the paper, of experts with a slot, and their ghosts B1 and B2, of those that lost it."""


class Arc:
    """Lists of all rows; `share` is the paper's target p for T1.

    Event-atomic: experts used at once are met by the lists as they stood before, and the ghosts' shifts of p add up.
    With one expert a step that is the paper's algorithm.
    """

    def __init__(self, slots: NDArray[np.int64], ties: Scores) -> None:
        self.slots, self.ties = slots, ties
        self.lists = np.zeros(ties.shape, np.int8)
        self.used_at = np.full(ties.shape, -1.0)
        self.share = np.zeros(len(slots))

    def after(self, step: int, used: Mask, loads: Mask) -> Scores:
        """Priorities after the uses of a step: T1 beyond its share goes first, then T2, then the rest of T1."""
        returned = [loads & (self.lists == ghost) for ghost in (GONE_ONCE, GONE_OFTEN)]
        n_once, n_ghosts = self._count(ONCE), [self._count(ghost) for ghost in (GONE_ONCE, GONE_OFTEN)]
        self._adapt([one.sum(axis=-1) for one in returned], n_ghosts)
        beyond = np.maximum(n_once - np.floor(self.share), 0)
        at_share = returned[1].any(axis=-1) & (n_once == self.share)
        spare = self._oldest(self.lists == ONCE, np.maximum(beyond, at_share))
        place = np.where(spare, 0.0, np.where(self.lists == OFTEN, 1.0, 2.0)) * (step + 2)
        held = used & ((self.lists == ONCE) | (self.lists == OFTEN))
        self.lists[held | returned[0] | returned[1]] = OFTEN
        self.lists[loads & (self.lists == ABSENT)] = ONCE
        self.used_at[held | loads] = step
        scores: Scores = place + self.used_at
        scores[held] = 3.0 * (step + 2)
        return scores

    def kept(self, step: int, cached: Mask) -> None:
        """Take note of who has a slot now; others become ghosts, of which at most as many are remembered as fit."""
        lists = self.lists
        for there, gone in ((ONCE, GONE_ONCE), (OFTEN, GONE_OFTEN)):
            lists[(lists == there) & ~cached] = gone
        came = cached & (lists != ONCE) & (lists != OFTEN)
        lists[came], self.used_at[came] = ONCE, step
        too_many = self._count(ONCE) + self._count(GONE_ONCE) - self.slots
        lists[self._oldest(lists == GONE_ONCE, too_many)] = ABSENT
        too_many = (lists != ABSENT).sum(axis=-1) - 2 * self.slots
        lists[self._oldest(lists == GONE_OFTEN, too_many)] = ABSENT

    def _adapt(self, returned: list[NDArray[np.int64]], n_ghosts: list[NDArray[np.int64]]) -> None:
        once, often = (np.maximum(n, 1) for n in n_ghosts)
        shift = returned[0] * np.maximum(1.0, n_ghosts[1] / once) - returned[1] * np.maximum(1.0, n_ghosts[0] / often)
        self.share = np.clip(self.share + shift, 0, self.slots)

    def _count(self, name: int) -> NDArray[np.int64]:
        members: NDArray[np.int64] = (self.lists == name).sum(axis=-1)
        return members

    def _oldest(self, members: Mask, n: NDArray[np.generic]) -> Mask:
        """The `n` [row] members whose last use is longest ago."""
        order = np.argsort(np.where(members, self.used_at + self.ties, np.inf), axis=-1, kind="stable")
        first = np.zeros(members.shape, bool)
        np.put_along_axis(first, order, np.arange(members.shape[-1]) < np.asarray(n)[:, None], axis=-1)
        return first & members
