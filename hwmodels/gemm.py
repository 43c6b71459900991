"""Time of dense layers on one device: GEMM, MLP, gate, norm and language model head."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels import cores
from hwmodels.blends import norm4
from hwmodels.constants import GemmConstants, Roofline
from hwmodels.core_constants import CoreGemmConstants
from hwmodels.devices import Device, computed_bytes, kept_bytes
from hwmodels.launch import activation_bytes, choice_s, norm_bytes, small_kernels_s, small_norm_s, top_k_bytes
from hwmodels.measured_tables import gemm_shape, log_of, uneven
from scenarios.models import BYTES_PER_VALUE

Times = NDArray[np.float64]
Sizes = int | NDArray[np.int64]

BF16_BYTES = BYTES_PER_VALUE["bf16"]

STEP = 64  # values of K that a tile multiplies in one step
# Tiles and splits of K that are tried, every combination once.
TILE_ROWS, TILE_COLUMNS, SPLIT = np.array(
    [(rows, columns, split) for rows in (64, 128) for columns in (64, 128, 256) for split in (1, 2, 4, 8, 16)],
    dtype=np.float64,
).T


def gemm_s(m: ArrayLike, n: int, k: int, weight_dtype: str, device: Device, batch: int = 1) -> Times:
    """Time of `batch` products [m, k] x [k, n] in one kernel: float64[...] [s]; m is an int array of any shape.

    The law is that of `product_s`, corrected where a table holds (n, k) and `batch` is 1. Zero rows leave only the
    launch. Raises HardwareError where the device has no peak or no constants for the data type.
    """
    rows, place = np.unique(np.asarray(m), return_inverse=True)  # devices mostly have the same few numbers of rows
    times = product_s(rows, n, k, weight_dtype, device, device.kernels.gemm(weight_dtype), batch)
    if batch == 1:
        times = times * device.measured.factor("gemm", weight_dtype, gemm_shape(n, k), uneven(rows), log_of(rows))
    return times[place].reshape(np.shape(m))


def product_s(
    m: ArrayLike,
    n: Sizes,
    k: Sizes,
    weight_dtype: str,
    device: Device,
    constants: GemmConstants | CoreGemmConstants | Roofline,
    batch: int = 1,
) -> Times:
    """Time of dense products under given constants: float64[...] [s]; m, n and k broadcast.

    Law `roofline`: fixed_s + max(flop, bytes). Law `cores`: `hwmodels.cores.product_s`, one product after another. Law
    `tiles`:

    T = fixed_s + min over tiles (BM, BN) and splits s of K of
            norm4(C, bytes / (memory_frac * BW), 2 m n k / (compute_frac * peak)) + quantise
    C = ceil(ceil(m / BM) ceil(n / BN) s / SMs) * (kk step + 2 BM BN / (store_values_per_flop * sm))
        + [s > 1] (split_s + 4 s m n / (memory_frac * BW))
    step = max((BM + BN) w / (load_bytes_per_flop * sm), 2 BM BN / (tile_compute_frac * peak / SMs))   for a value of K
    kk = K / s up to a multiple of 64, sm the bf16 peak of a multiprocessor, w bytes of a value as multiplied,
    bytes = k n (weight bytes) + m (k w + 2 n), quantise = m k (2 + w) / (quantise_frac * BW) where the kernel does it.

    Errors on unseen shapes are in docs/background/calibration.md.
    """
    if isinstance(constants, CoreGemmConstants):
        return batch * cores.product_s(m, n, k, weight_dtype, device, constants)
    rows = np.asarray(m, dtype=np.float64)
    width = computed_bytes(weight_dtype)
    bandwidth = constants.memory_frac * device.memory_bytes_per_s
    weights = (rows > 0) * (BYTES_PER_VALUE[weight_dtype] * np.asarray(k, np.float64) * n)
    memory_s = batch * (weights + rows * (k * width + n * BF16_BYTES)) / bandwidth
    peak_s = batch * 2.0 * rows * n * k / (constants.compute_frac * device.peak_flop_per_s(weight_dtype))
    if isinstance(constants, Roofline):
        return np.asarray(constants.fixed_s + np.maximum(memory_s, peak_s))
    tiled_s = _tiled_s(rows, n, k, weight_dtype, device, constants, batch)
    times = constants.fixed_s + norm4(tiled_s, memory_s, peak_s)
    if constants.quantise_frac is not None and weight_dtype != "bf16":
        times = times + batch * rows * k * (BF16_BYTES + width) / (constants.quantise_frac * device.memory_bytes_per_s)
    return np.asarray(times)


def stream_s(moved_bytes: ArrayLike, device: Device) -> Times:
    """Time of one small kernel on the device: float64[...] [s]; see `hwmodels.launch.small_kernels_s`."""
    return small_kernels_s(moved_bytes, device.memory_bytes_per_s, device.kernels.launch())


def mlp_s(tokens: ArrayLike, hidden: int, intermediate: int, gated: bool, dtype: str, device: Device) -> Times:
    """Time of a dense or shared-expert MLP: float64[...] [s]; `intermediate` is already divided by TP.

    Up GEMM (with the gate beside it, where gated), activation kernel, down GEMM.
    """
    (up_columns, _), _ = mlp_products(hidden, intermediate, gated)
    up_s = gemm_s(tokens, up_columns, hidden, dtype, device)
    activation_s = stream_s(activation_bytes(tokens, intermediate, gated, kept_bytes(dtype)), device)
    return up_s + activation_s + gemm_s(tokens, hidden, intermediate, dtype, device)


def mlp_products(hidden: int, intermediate: int, gated: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """(n, k) of the up GEMM, with the gate beside it where gated, and of the down GEMM."""
    return ((2 if gated else 1) * intermediate, hidden), (hidden, intermediate)


def gate_s(tokens: ArrayLike, hidden: int, n_experts: int, top_k: int, dtype: str, device: Device) -> Times:
    """Time of the router: a GEMM in `dtype` to the experts' scores, then softmax and top-k: float64[...] [s].

    Where the kernel card has constants of the choice, they count in place of a small kernel.
    """
    scores_s, choice = gemm_s(tokens, n_experts, hidden, dtype, device), device.kernels.choice()
    if choice is None:
        return scores_s + stream_s(top_k_bytes(tokens, n_experts, top_k), device)
    return scores_s + choice_s(tokens, n_experts, choice)


def norm_s(tokens: ArrayLike, hidden: int, dtype: str, device: Device) -> Times:
    """Time of a norm fused with the residual sum, of activations in `dtype`: float64[...] [s]."""
    moved = norm_bytes(tokens, hidden, kept_bytes(dtype))
    return small_norm_s(moved, device.memory_bytes_per_s, device.kernels.launch())


def head_s(tokens: ArrayLike, hidden: int, vocab: int, tp: int, dtype: str, device: Device) -> Times:
    """Time of the language model head, its vocabulary split over `tp` devices: float64[...] [s].

    `tokens` are the positions that need logits: one per request, in decode and at the end of prefill.
    """
    return gemm_s(tokens, -(-vocab // tp), hidden, dtype, device)


def _tiled_s(
    rows: Times, n: Sizes, k: Sizes, dtype: str, device: Device, constants: GemmConstants, batch: int
) -> Times:
    """Computing time of the fastest tile and split, over an axis of all pairs of them."""
    sm_flop = device.sm_bf16_flop_per_s
    reached = constants.tile_compute_frac * device.peak_flop_per_s(dtype) / device.n_sms
    step_s = 2.0 * TILE_ROWS * TILE_COLUMNS / reached
    if constants.load_bytes_per_flop is not None:
        loaded = (TILE_ROWS + TILE_COLUMNS) * computed_bytes(dtype)
        step_s = np.maximum(step_s, loaded / (constants.load_bytes_per_flop * sm_flop))
    store_s: Times | float = 0.0
    if constants.store_values_per_flop is not None:
        store_s = 2.0 * TILE_ROWS * TILE_COLUMNS / (constants.store_values_per_flop * sm_flop)
    m, columns, inner = (np.asarray(size, dtype=np.float64)[..., None] for size in (rows, n, k))
    tiles = batch * np.ceil(m / TILE_ROWS) * np.ceil(columns / TILE_COLUMNS)
    depth = np.ceil(inner / (SPLIT * STEP)) * STEP
    waves = np.ceil(tiles * SPLIT / device.n_sms)
    parts_s = batch * 4.0 * m * columns / (constants.memory_frac * device.memory_bytes_per_s)
    summed_s = np.where(SPLIT > 1, constants.split_s + SPLIT * parts_s, 0.0)
    fastest: Times = (waves * (depth * step_s + store_s) + summed_s).min(axis=-1)
    return fastest
