"""Misses in two precisions: what is copied in the lower one, from slots of its own, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.offload.replay import Listed, Replayed, Requests, replay
from sim.offload.wanted import Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Low:
    """Uses that no expert of the model's own precision served, bool[step, row, place].

    resident, loaded  in low precision: there before the step, or copied; skipped: left out.
    """

    resident: Mask
    loaded: Mask
    skipped: Mask


def graded(requests: Requests, grades: tuple[Mask, Mask], low_slots: NDArray[np.int64]) -> tuple[Replayed, Low]:
    """The replay where misses are copied in the precision that their step asks for.

    grades  bool[step, row, place]: to be copied in high, in low precision; others are skipped. An expert with a slot in
            high precision serves whatever is asked. The slots in low precision, int64[row], are an LRU cache.
    """
    dear, cheap = grades
    served = replay(requests, lambda step, _hit, missed: missed & dear[step])
    asked = served.hosted & cheap
    step = np.arange(len(asked))[:, None, None]
    recency = np.maximum.accumulate(np.where(asked, step, -1), axis=0).astype(np.float64)
    nobody = np.zeros_like(requests.placed)
    second = replace(
        requests, used=asked, ahead=None, keeper=Listed(recency), slots=low_slots, placed=nobody, admits=True
    )
    low = replay(second)
    lower = Low(resident=low.resident, loaded=low.loaded, skipped=served.hosted & ~cheap)
    return replace(served, hosted=np.zeros_like(served.hosted)), lower
