"""Time of dense layers on one device: GEMM, MLP, norm and language model head."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.devices import Device
from scenarios.models import BYTES_PER_VALUE

Times = NDArray[np.float64]

BF16_BYTES = BYTES_PER_VALUE["bf16"]


def gemm_s(m: ArrayLike, n: int, k: int, weight_dtype: str, device: Device, batch: int = 1) -> Times:
    """Time of `batch` products [m, k] x [k, n] in one kernel: float64[...] [s]; m is an int array of any shape.

    T = kernel_s + max(flop / (gemm_compute_frac * peak), bytes / (memory_frac * BW)), flop = 2 * m * n * k * batch,
    bytes = (k * n * weight bytes + (m * k + m * n) * 2) * batch: inputs and outputs are bf16, quantised on the way.
    Zero rows leave only the launch: kernel_s.
    """
    rows = np.asarray(m, dtype=np.float64)
    constants = device.constants
    weight_bytes = batch * n * k * BYTES_PER_VALUE[weight_dtype]
    flop_per_s = constants.gemm_compute_frac.value * device.peak_flop_per_s(weight_dtype)
    bandwidth = constants.memory_frac.value * device.memory_bytes_per_s
    compute_s = rows * (2.0 * batch * n * k / flop_per_s)
    memory_s = ((rows > 0) * weight_bytes + rows * (batch * (n + k) * BF16_BYTES)) / bandwidth
    return constants.kernel_s.value + np.maximum(compute_s, memory_s)


def stream_s(moved_bytes: ArrayLike, device: Device) -> Times:
    """Time of one kernel that only moves bytes: float64[...] [s]; T = kernel_s + bytes / (memory_frac * BW)."""
    bandwidth = device.constants.memory_frac.value * device.memory_bytes_per_s
    return device.constants.kernel_s.value + np.asarray(moved_bytes, dtype=np.float64) / bandwidth


def mlp_s(tokens: ArrayLike, hidden: int, intermediate: int, gated: bool, dtype: str, device: Device) -> Times:
    """Time of a dense or shared-expert MLP: float64[...] [s]; `intermediate` is already divided by TP.

    Up GEMM (with the gate beside it, where gated), activation kernel, down GEMM. The activation reads 2I values
    (I where not gated) and writes I, in bf16.
    """
    up_columns = (2 if gated else 1) * intermediate
    activation_values = np.asarray(tokens, dtype=np.float64) * (up_columns + intermediate)
    up_s = gemm_s(tokens, up_columns, hidden, dtype, device)
    activation_s = stream_s(activation_values * BF16_BYTES, device)
    return up_s + activation_s + gemm_s(tokens, hidden, intermediate, dtype, device)


def norm_s(tokens: ArrayLike, hidden: int, device: Device) -> Times:
    """Time of a norm fused with the residual sum: float64[...] [s]; two rows read, two written per token, bf16."""
    return stream_s(np.asarray(tokens, dtype=np.float64) * (4 * hidden * BF16_BYTES), device)


def head_s(tokens: ArrayLike, hidden: int, vocab: int, tp: int, dtype: str, device: Device) -> Times:
    """Time of the language model head, its vocabulary split over `tp` devices: float64[...] [s].

    `tokens` are the positions that need logits: one per request, in decode and at the end of prefill.
    """
    return gemm_s(tokens, -(-vocab // tp), hidden, dtype, device)
