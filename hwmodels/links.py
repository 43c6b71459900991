"""Time on one link or port: alpha-beta law, and ring collectives made of it. Sharing of links is decided elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.cards import LinkCard
from scenarios.errors import ScenarioError

Times = NDArray[np.float64]


def port_s(moved_bytes: ArrayLike, link: LinkCard) -> Times:
    """Time that bytes occupy one port in one direction, without latency: float64[...] [s].

    T = bytes / (bytes_per_s * efficiency).
    """
    return np.asarray(moved_bytes, dtype=np.float64) / link.effective_bytes_per_s


def transfer_s(moved_bytes: ArrayLike, link: LinkCard) -> Times:
    """Time of one message: float64[...] [s]; T = latency_s + `port_s`. An empty message still takes the latency."""
    return link.latency_s.value + port_s(moved_bytes, link)


def all_gather_s(bytes_per_device: ArrayLike, n_devices: int, link: LinkCard) -> Times:
    """Time of a ring all-gather: float64[...] [s]; `bytes_per_device` is what each device contributes.

    T = (n - 1) * (ring_step_latency_s + bytes / BW): every device passes on one contribution per step; 0 for n = 1.
    Raises ScenarioError where n_devices < 1.
    """
    return _ring_s(np.asarray(bytes_per_device, dtype=np.float64), n_devices, link)


def reduce_scatter_s(bytes_per_device: ArrayLike, n_devices: int, link: LinkCard) -> Times:
    """Time of a ring reduce-scatter: float64[...] [s]; `bytes_per_device` is each device's whole input.

    T = (n - 1) * (ring_step_latency_s + bytes / n / BW): every device passes on one n-th per step. n = 1 takes no time.
    Raises ScenarioError where n_devices < 1.
    """
    return _ring_s(np.asarray(bytes_per_device, dtype=np.float64) / max(n_devices, 1), n_devices, link)


def all_reduce_s(bytes_per_device: ArrayLike, n_devices: int, link: LinkCard) -> Times:
    """Time of a ring all-reduce: float64[...] [s]; `bytes_per_device` is each device's whole buffer.

    T = 2 * (n - 1) * (ring_step_latency_s + bytes / n / BW), reduce-scatter and all-gather of the n-ths (Patarasuk and
    Yuan, J. Parallel Distrib. Comput. 69, 2009). n = 1 takes no time. Raises ScenarioError where n_devices < 1.
    """
    return 2 * reduce_scatter_s(bytes_per_device, n_devices, link)


def _ring_s(step_bytes: Times, n_devices: int, link: LinkCard) -> Times:
    """Time of n - 1 steps, in each of which every device sends `step_bytes` to its neighbour."""
    if n_devices < 1:
        raise ScenarioError(f"a collective of {n_devices} devices is impossible; give 1 or more")
    return (n_devices - 1) * (link.ring_step_latency_s + port_s(step_bytes, link))
