"""Time on processing-in-memory units, which share the memory of the device that they belong to."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.cards import DeviceCard, PimUnits
from hwmodels.moe import ExpertShape
from scenarios.errors import HardwareError

Times = NDArray[np.float64]


def pim_units(card: DeviceCard) -> PimUnits:
    """The units of a device card. Raises HardwareError where it has none."""
    if card.pim is None:
        raise HardwareError(f"{card.name} has no PIM units; choose a device of kind pim, see `moesim list hardware`")
    return card.pim


def pim_s(flop: ArrayLike, moved_bytes: ArrayLike, units: PimUnits) -> Times:
    """Time of an operation on all units together: float64[...] [s].

    T = max(flop / peak, bytes / internal bandwidth), the law of Duplex (arXiv 2409.01141): no launch time, no
    efficiency. For decode attention the bytes are those of the cache and flop those of all query heads that share it.
    """
    compute_s = np.asarray(flop, np.float64) / units.peak_flop_per_s.value
    time_s: Times = np.maximum(compute_s, np.asarray(moved_bytes, np.float64) / units.memory_bytes_per_s.value)
    return time_s


def pim_experts_s(slot_tokens: ArrayLike, shape: ExpertShape, units: PimUnits) -> Times:
    """Time of routed experts on the units, one after another over all stacks: float64[...] [s].

    slot_tokens  int[..., slot]. Each expert with tokens costs `pim_s` of its weight bytes and 2 flop per weight and
    token; activations stay in the units' buffers.
    """
    tokens = np.asarray(slot_tokens, np.float64)
    weights = sum(n * k for n, k in shape.gemm_sizes)
    return np.asarray(pim_s(tokens * (2.0 * weights), (tokens > 0) * shape.weight_bytes, units).sum(axis=-1))


def prefers_pim(
    flop: ArrayLike, moved_bytes: ArrayLike, units: PimUnits, device_flop_per_s: float, device_bytes_per_s: float
) -> NDArray[np.bool_]:
    """Whether an operation is faster on the units than on their device: bool[...]; ties stay on the device.

    Both are rooflines, so this is dispatch by operations per byte: below `crossover_flop_per_byte` the units win.
    """
    compute_s = np.asarray(flop, np.float64) / device_flop_per_s
    device_s = np.maximum(compute_s, np.asarray(moved_bytes, np.float64) / device_bytes_per_s)
    return np.asarray(pim_s(flop, moved_bytes, units) < device_s)


def crossover_flop_per_byte(units: PimUnits, device_flop_per_s: float, device_bytes_per_s: float) -> float:
    """Operations per byte below which the units are faster: their peak over the device's memory bandwidth.

    0 where the units read no faster than the device, infinite where they read faster and compute as fast.
    """
    if units.memory_bytes_per_s.value <= device_bytes_per_s:
        return 0.0
    if units.peak_flop_per_s.value >= device_flop_per_s:
        return float("inf")
    return units.peak_flop_per_s.value / device_bytes_per_s


def together_s(device_s: ArrayLike, units_s: ArrayLike, units: PimUnits) -> Times:
    """Time until work of the device and work of its units, begun together, are both done: float64[...] [s].

    Where the units are exclusive the device cannot use the memory while they compute, so the times add up; otherwise
    (Duplex's bank bundles serve one unit each) the longer one counts.
    """
    device, beside = np.asarray(device_s, np.float64), np.asarray(units_s, np.float64)
    return device + beside if units.exclusive.value else np.maximum(device, beside)
