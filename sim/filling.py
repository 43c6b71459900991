"""Pieces of gradients as long as the ports idle in each gap of a backward pass (FSMoE, arXiv 2501.10714, section 5)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sim.durations import Duration
from sim.gradient_sums import Buckets, Floats, on_ports, sum_s
from sim.laws import Law
from sim.log import begins_s
from sim.policies.gradients import FILL
from sim.pricing import Prices
from sim.program import EXCHANGE_LANES, OpList, Work
from sim.setting import Setting
from sim.training import BACKWARD, DENSE_SUM, EXPERT_SUM, HEAD_SUM
from sim.vector import execute

BISECTIONS = 40


def filled(setting: Setting, op_list: OpList, prices: Prices, buckets: Buckets, law: Law) -> Prices:
    """Prices with the pieces of order fill: each takes of the gradients that are ready what fits into its gap.

    What they leave of a bucket is summed after the backward pass. Sizes are the same in all steps, as those of a real
    run are set before it.
    """
    gaps = [index for index, op in enumerate(op_list.ops) if op.work.kind == FILL]
    nothing = on_ports(setting, np.zeros(setting.layout.n_devices))
    unfilled = prices.plus_single({op_list.ops[index].work: nothing for index in gaps})
    windows_s = idle_windows_s(op_list, unfilled.durations(op_list), law)
    ready = deque(sorted(buckets, key=lambda key: _ready_at(op_list, key)))
    waiting: deque[tuple[tuple[str, int], float]] = deque()
    pieces: dict[Work, Duration] = {}
    for index, window_s in zip(gaps, windows_s, strict=True):
        while ready and _ready_at(op_list, ready[0]) <= max(op_list.ops[index].after):
            waiting.append((ready.popleft(), 1.0))
        pieces[op_list.ops[index].work] = on_ports(setting, _taken(setting, buckets, waiting, window_s))
    left = dict(waiting) | dict.fromkeys(ready, 1.0)
    rest: dict[Work, Duration] = {
        Work(*key, 0): on_ports(setting, sum_s(setting, bucket, left[key])) if key in left else nothing
        for key, bucket in buckets.items()
    }
    return prices.plus_single(pieces | rest)


def idle_windows_s(op_list: OpList, durations: Sequence[Duration], law: Law) -> list[float]:
    """Time in which no device uses its ports at each piece in a gap, mean over steps [s]; pieces take none.

    From when the last device could begin the piece until the first one begins the exchange after it.
    """
    finished = execute(op_list, durations, law=law)
    begins = begins_s(op_list, durations, finished)
    on_lane = [index for index, op in enumerate(op_list.ops) if op.lanes == EXCHANGE_LANES]
    windows = []
    for index, following in pairwise(on_lane):
        if op_list.ops[index].work.kind == FILL:
            idle_s = begins[following].min(axis=-1) - finished.end_s[index].max(axis=-1)
            windows.append(float(np.maximum(idle_s, 0.0).mean()))
    return windows


def _taken(
    setting: Setting, buckets: Buckets, waiting: deque[tuple[tuple[str, int], float]], budget_s: float
) -> Floats:
    """Time float64[device] of what is taken from the head of the queue within a budget, which shrinks the queue."""
    taken_s = np.zeros(setting.layout.n_devices)
    while waiting:
        key, left = waiting.popleft()
        frac = _largest_frac(setting, buckets, key, (left, budget_s - float(taken_s.max())))
        if frac > 0:
            taken_s = taken_s + sum_s(setting, buckets[key], frac)
        if frac < left:
            waiting.appendleft((key, left - frac))
            break
    return taken_s


def _largest_frac(setting: Setting, buckets: Buckets, key: tuple[str, int], limits: tuple[float, float]) -> float:
    """Largest share of a bucket up to a limit that is summed within a time, by bisection; 0 where none is."""
    most, budget_s = limits
    if sum_s(setting, buckets[key], most).max() <= budget_s:
        return most
    low, high = 0.0, most
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = sum_s(setting, buckets[key], middle).max() <= budget_s
        low, high = (middle, high) if fits else (low, middle)
    return low if low > most * 2.0 ** (1 - BISECTIONS) else 0.0


def _ready_at(op_list: OpList, key: tuple[str, int]) -> float:
    """Index of the operation after which a bucket's gradients are there; the embedding's come last."""
    kind, layer = key
    source = {DENSE_SUM: "attention", EXPERT_SUM: "experts", HEAD_SUM: "head"}[kind] + BACKWARD
    found = [i for i, op in enumerate(op_list.ops) if (op.work.kind, op.work.layer) == (source, layer)]
    return found[-1] if found else float(len(op_list.ops))
