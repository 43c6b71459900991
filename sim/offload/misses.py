"""What becomes of missed experts: copied to the device, or computed by the cores of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.offload_specs import MissName
from sim.offload.replay import Split
from sim.offload.wanted import Mask, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class MissCosts:
    """Times of one expert, float64[step, row, place] [s] by its tokens: on the host, and on the device once there.

    copy_s  time of its copy, the same for all or float64[row, place]; call_s: what the host takes once a layer beside
            its experts.
    """

    host_s: Scores
    device_s: Scores
    copy_s: Scores | float
    call_s: float


def split_of(miss: MissName, costs_of: Callable[[], MissCosts]) -> Split | None:
    """How a step's misses are divided; None where all are copied. Costs are asked for where they decide."""
    if miss == "load":
        return None
    if miss == "host":
        return lambda _step, _hit, missed: np.zeros_like(missed)
    costs = costs_of()
    if miss == "cheaper":
        sooner = costs.copy_s + costs.device_s < costs.host_s + costs.call_s
        return lambda step, _hit, missed: missed & sooner[step]
    return lambda step, hit, missed: balanced(costs, step, hit, missed)


def balanced(costs: MissCosts, step: int, hit: Mask, missed: Mask) -> Mask:
    """The misses of each row that are copied where copies, device and host together end soonest.

    The experts that take the host longest are copied, k of n: T(k) = max(host's call and its n - k experts, the
    device's hits and k experts, k copies and the last expert), at the k of least T. HybriMoE (arXiv 2504.05897)
    finds its split by simulating these three queues greedily in the same order.
    """
    host_s = np.where(missed, costs.host_s[step], 0.0)
    order = np.argsort(-host_s, axis=-1, kind="stable")
    device_s = np.take_along_axis(np.where(missed, costs.device_s[step], 0.0), order, axis=-1)
    ranked_s = np.take_along_axis(host_s, order, axis=-1)
    n_missed = missed.sum(axis=-1, keepdims=True)
    count = np.arange(missed.shape[-1] + 1)
    left_s = np.pad(ranked_s[:, ::-1].cumsum(axis=-1)[:, ::-1], ((0, 0), (0, 1)))
    on_host_s = np.where(count < n_missed, left_s + costs.call_s, 0.0)
    hits_s = np.where(hit, costs.device_s[step], 0.0).sum(axis=-1, keepdims=True)
    on_device_s = hits_s + np.pad(device_s.cumsum(axis=-1), ((0, 0), (1, 0)))
    last_s = np.pad(device_s, ((0, 0), (1, 0)))
    end_s = np.maximum(np.maximum(on_host_s, on_device_s), _copies_s(costs.copy_s, order, count) + last_s)
    best = np.where(count <= n_missed, end_s, np.inf).argmin(axis=-1)[:, None]
    chosen = np.zeros_like(missed)
    np.put_along_axis(chosen, order, count[:-1] < best, axis=-1)
    return chosen & missed


def _copies_s(copy_s: Scores | float, order: NDArray[np.intp], count: NDArray[np.int64]) -> Scores:
    """Time of the first copies in an order, by their number."""
    if np.ndim(copy_s) == 0:
        return np.asarray(count * copy_s, np.float64)
    return np.pad(np.take_along_axis(np.asarray(copy_s), order, axis=-1).cumsum(axis=-1), ((0, 0), (1, 0)))
