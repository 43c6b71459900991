"""Time of routed experts were nothing left partly filled: below every plan's, for bounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.blends import norm2
from hwmodels.constants import MoeConstants
from hwmodels.core_constants import CoreMoeConstants
from hwmodels.cores import experts_floor_s
from hwmodels.devices import Device
from hwmodels.moe import ExpertShape, activation_bytes

Times = NDArray[np.float64]


def fluid_moe_s(routed: ArrayLike, active: ArrayLike, n_slots: float, shape: ExpertShape, device: Device) -> Times:
    """Less than `moe_s` of any tokens, and convex in them: float64[...] [s].

    routed, active  float[...]: tokens times choices, and slots with a token; means over devices, too: by Jensen's
                    inequality the slowest device takes at least the time of the mean device.

    Law `tiles` with no tile or wave left partly filled, and so `roofline` with maxima in place of the roots:

        T = fixed_s + n_slots expert_s + routed row_s + sum over GEMMs of sqrt(C^2 + W^2) + A / (activation_frac BW)
        C = routed 2 N K / (compute_frac peak)

    Law `cores`: `hwmodels.cores.experts_floor_s`.
    """
    constants = device.kernels.moe(shape.weight_dtype)
    tokens, slots = np.asarray(routed, np.float64), np.asarray(active, np.float64)
    if isinstance(constants, CoreMoeConstants):
        (columns, hidden), _ = shape.gemm_sizes
        sizes = (float(hidden), float(columns), float(shape.intermediate_size))
        return experts_floor_s(tokens, slots, sizes, shape.weight_dtype, device, constants)
    peak, bandwidth = device.peak_flop_per_s(shape.weight_dtype), device.memory_bytes_per_s
    if isinstance(constants, MoeConstants):
        weight_frac = max(constants.weight_frac, constants.small_tile_frac or 0.0)
        activation_frac = constants.activation_frac
        total_s = constants.fixed_s + constants.expert_s * n_slots + constants.row_s * tokens
    else:
        weight_frac = activation_frac = constants.memory_frac
        total_s = np.full(tokens.shape, constants.fixed_s)
    total_s = total_s + activation_bytes(tokens, shape) / (activation_frac * bandwidth)
    for n, k in shape.gemm_sizes:
        computed_s = tokens * (2.0 * n * k / (constants.compute_frac * peak))
        streamed_s = slots * (n * k * shape.bytes_per_weight / (weight_frac * bandwidth))
        both_s = np.maximum(computed_s, streamed_s)
        total_s = total_s + (norm2(computed_s, streamed_s) if isinstance(constants, MoeConstants) else both_s)
    return np.asarray(total_s)
