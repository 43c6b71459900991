"""Small kernels and launches: floors of the device and of the host, and what communication kernels take of the SMs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from hwmodels.core_constants import ChoiceConstants
from hwmodels.fitted import Band, Fitted
from scenarios.errors import HardwareError
from scenarios.units import Seconds

Times = NDArray[np.float64]


class LaunchConstants(Fitted):
    """What a kernel costs beside its work, of one device and engine."""

    kernel_s: Seconds = Field(description="device time of a kernel with next to nothing to do, inside a CUDA graph")
    norm_s: Seconds | None = Field(
        default=None, description="the same of a norm with its residual sum, where it is several kernels"
    )
    small_memory_frac: float = Field(
        gt=0, description="share of BW that small kernels reach; above 1 from the L2 cache"
    )
    eager_kernel_s: Seconds = Field(description="host time per kernel in eager mode, framework included")
    graph_s: Seconds = Field(description="host time of replaying one CUDA graph, however many kernels it holds")
    device_band: Band | None = Field(default=None, description="of device times; residuals and band are of launches")


def small_kernels_s(
    moved_bytes: ArrayLike, memory_bytes_per_s: float, constants: LaunchConstants, n_kernels: int = 1
) -> Times:
    """Device time of kernels that only move bytes (norm, top-k, permute, activation): float64[...] [s].

    moved_bytes  float[...]: read and written by all of them together. T = n * kernel_s + bytes / (frac * BW).
    """
    bandwidth = constants.small_memory_frac * memory_bytes_per_s
    return n_kernels * constants.kernel_s + np.asarray(moved_bytes, np.float64) / bandwidth


def small_norm_s(moved_bytes: ArrayLike, memory_bytes_per_s: float, constants: LaunchConstants) -> Times:
    """Device time of a norm with its residual sum: float64[...] [s]; from norm_s where that is given."""
    more_s = 0.0 if constants.norm_s is None else constants.norm_s - constants.kernel_s
    return small_kernels_s(moved_bytes, memory_bytes_per_s, constants) + more_s


def norm_bytes(tokens: ArrayLike, hidden: int, value_bytes: float = 2.0) -> Times:
    """Bytes of a norm fused with the residual sum: two rows read and two written per token: float64[...]."""
    return np.asarray(tokens, np.float64) * (4 * hidden * value_bytes)


def top_k_bytes(tokens: ArrayLike, n_experts: int, top_k: int) -> Times:
    """Bytes of softmax and top-k: float32 scores read, k weights and k ids of 4 bytes written: float64[...]."""
    return np.asarray(tokens, np.float64) * (4 * n_experts + 8 * top_k)


def choice_s(tokens: ArrayLike, n_experts: ArrayLike, constants: ChoiceConstants) -> Times:
    """Time of the router's choice from scores: float64[...] [s]; T = fixed_s + tokens (row_s + experts score_s)."""
    row_s = constants.row_s + np.asarray(n_experts) * constants.score_s
    return constants.fixed_s + np.asarray(tokens, np.float64) * row_s


def permute_bytes(routed_tokens: ArrayLike, hidden: int, value_bytes: float = 2.0) -> Times:
    """Bytes of reordering rows by expert: one read and one write per routed token: float64[...]."""
    return np.asarray(routed_tokens, np.float64) * (2 * hidden * value_bytes)


def activation_bytes(routed_tokens: ArrayLike, intermediate: int, gated: bool, value_bytes: float = 2.0) -> Times:
    """Bytes of the activation: I values read (2I where gated) and I written per routed token: float64[...]."""
    return np.asarray(routed_tokens, np.float64) * ((3 if gated else 2) * intermediate * value_bytes)


def host_floor_s(n_kernels: ArrayLike, constants: LaunchConstants) -> Times:
    """Time that the host needs to launch kernels one by one: float64[...] [s]; n * eager_kernel_s."""
    return np.asarray(n_kernels, np.float64) * constants.eager_kernel_s


def eager_s(device_s: ArrayLike, n_kernels: ArrayLike, constants: LaunchConstants) -> Times:
    """Time of kernels launched one by one: float64[...] [s]; at least `host_floor_s`, since launches run ahead.

    device_s  float[...]: device time of the same kernels back to back.
    """
    return np.maximum(np.asarray(device_s, np.float64), host_floor_s(n_kernels, constants))


def replayed_s(device_s: ArrayLike, constants: LaunchConstants) -> Times:
    """Time of the same kernels replayed as one CUDA graph: float64[...] [s]; graph_s + device_s."""
    return np.asarray(device_s, np.float64) + constants.graph_s


def compute_slowdown(sms_taken: ArrayLike, n_sms: int) -> NDArray[np.float64]:
    """Factor on compute-bound time while other kernels hold SMs: float64[...]; n / (n - taken).

    Assumed: no public table times a GEMM beside a communication kernel. Kernels bound by memory are not slowed by it.
    Raises HardwareError where no SM is left, or a number is negative.
    """
    taken = np.asarray(sms_taken, np.float64)
    if not ((taken >= 0) & (taken < n_sms)).all():
        raise HardwareError(f"{taken} SMs taken of {n_sms}: choose from 0 to {n_sms - 1}")
    return n_sms / (n_sms - taken)
