"""Lower bounds on the load of the busiest rank, so that a solver can state a gap."""

from __future__ import annotations

import numpy as np

from placement.eplb import replicate_experts
from placement.plan import FloatArray


def busiest_rank_bound(loads: FloatArray, *, n_slots: int, n_ranks: int) -> FloatArray:
    """No placement has a busiest rank below this [unit of `loads`], float64[layer], under even split.

    `loads` is float64[layer, expert]; every rank holds S = n_slots / n_ranks of the n_slots copies, of which
    r = n_slots - experts are redundant. The largest of three bounds, each true of any choice of copies:

    - the mean over ranks;
    - the largest share of a copy, at its smallest over all choices of copies, plus the S - 1 copies beside it;
    - for j = 2..S: of the (j-1) ranks + 1 largest copies some rank holds j, and S - j others beside them. At most r
      experts are split, so the i-th largest copy is at least the (i + r)-th largest load.

    Any n copies include all copies of at least n - r experts, so they weigh at least the n - r smallest loads.
    """
    n_experts = loads.shape[1]
    room, redundant = n_slots // n_ranks, n_slots - n_experts
    descending = -np.sort(-loads, axis=1)
    lightest = np.cumsum(np.pad(descending[:, ::-1], ((0, 0), (1, 0))), axis=1)
    _, counts = replicate_experts(loads, n_slots)
    bounds = [loads.sum(axis=1) / n_ranks, (loads / counts).max(axis=1) + lightest[:, max(room - 1 - redundant, 0)]]
    for j in range(2, room + 1):
        last = (j - 1) * n_ranks + 1 + redundant
        heavy = descending[:, last - j : last].sum(axis=1)  # past the last expert nothing is left to count
        bounds.append(heavy + lightest[:, max(room - j - redundant, 0)])
    highest: FloatArray = np.max(bounds, axis=0)
    return highest
