"""Time of backward passes on one device: gradients of inputs and of weights, by the laws of the forward kernels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.blends import norm2, norm4
from hwmodels.constants import MoeConstants, Roofline
from hwmodels.devices import Device, computed_bytes
from hwmodels.gemm import gemm_s, mlp_products, product_s, stream_s
from hwmodels.launch import activation_bytes
from hwmodels.moe import ExpertShape
from hwmodels.tiles import TILE_RULES
from scenarios.errors import HardwareError
from scenarios.models import BYTES_PER_VALUE

Times = NDArray[np.float64]

STEP = 64  # rows of tokens that a tile multiplies in one step
# FlashAttention-2 (arXiv 2307.08691): backward passes multiply 2.5 times as much (section 3.1: five products instead of
# two), at up to 63 % of the peak of an A100 where forward passes reach 73 % (abstract and section 4).
CORE_BACKWARD = 2.5 * 0.73 / 0.63


def product_gradients_s(tokens: ArrayLike, n: int, k: int, dtype: str, device: Device, batch: int = 1) -> Times:
    """Time of both gradients of `batch` products [tokens, k] x [k, n]: float64[...] [s].

    That of the input is a product [tokens, n] x [n, k], that of the weights one of [k, tokens] x [tokens, n].
    """
    depths, place = np.unique(np.asarray(tokens), return_inverse=True)
    of_weights = product_s(k, n, depths, dtype, device, device.kernels.gemm(dtype), batch)
    return gemm_s(tokens, k, n, dtype, device, batch) + of_weights[place].reshape(np.shape(tokens))


def mlp_gradients_s(
    tokens: ArrayLike, hidden: int, intermediate: int, gated: bool, dtype: str, device: Device
) -> Times:
    """Time of the backward pass of a dense or shared-expert MLP: float64[...] [s]; as of `hwmodels.gemm.mlp_s`."""
    products_s = sum(
        product_gradients_s(tokens, n, k, dtype, device) for n, k in mlp_products(hidden, intermediate, gated)
    )
    return np.asarray(products_s) + activation_gradient_s(tokens, intermediate, gated, device)


def activation_gradient_s(tokens: ArrayLike, intermediate: int, gated: bool, device: Device) -> Times:
    """Time of an activation's backward pass: float64[...] [s].

    It reads the gradient of its result and its inputs, 2I where gated, and writes the gradients of its inputs.
    """
    forward = activation_bytes(tokens, intermediate, gated)
    return stream_s(forward * (5 / 3 if gated else 3 / 2), device)


def expert_weight_gradients_s(slot_tokens: ArrayLike, shape: ExpertShape, device: Device, gradient_dtype: str) -> Times:
    """Time of the gradients of the weights of a device's experts: float64[...] [s], of int[..., slot] tokens.

    Two grouped products [K, tokens] x [tokens, N] of the sizes (N, K) of `shape`: T = 2 kernel_s + |C, B|_2,
    C  sum over slots of 2 N K (tokens up to a multiple of 64) / (compute_frac peak), or what the loads of tiles take;
    B  gradients written at weight_frac BW, and rows read, of N and K values, at activation_frac BW.
    Waves are not rounded up, since every expert has hundreds of tiles. Nobody timed these kernels for this project: the
    constants are those of the forward kernels. Raises HardwareError for a law without a peak per tile.
    """
    constants = device.kernels.moe(shape.weight_dtype)
    counts = np.asarray(slot_tokens)
    rows = counts.sum(axis=-1, dtype=np.int64)
    deep = (-(-counts // STEP) * STEP).sum(axis=-1, dtype=np.int64)
    weights = float(sum(n * k for n, k in shape.gemm_sizes))
    read = 2.0 * rows * sum(n + k for n, k in shape.gemm_sizes)
    written = counts.shape[-1] * weights * BYTES_PER_VALUE[gradient_dtype]
    peak, bandwidth = device.peak_flop_per_s(shape.weight_dtype), device.memory_bytes_per_s
    if isinstance(constants, Roofline):
        bytes_s = (read + written) / (constants.memory_frac * bandwidth)
        return np.asarray(
            constants.fixed_s + np.maximum(2.0 * rows * weights / (constants.compute_frac * peak), bytes_s)
        )
    if not isinstance(constants, MoeConstants):
        raise HardwareError(
            f"kernel card {device.kernels.name}: law {constants.law} of experts knows no gradients; use a card of a GPU"
        )
    step_s = 2.0 * weights * deep / (constants.compute_frac * peak)
    if constants.load_bytes_per_flop is not None:
        tile_rows, tile_columns = max(TILE_RULES[constants.tiles].tiles)
        loads_per_flop = (
            (tile_rows + tile_columns) * computed_bytes(shape.weight_dtype) / (2.0 * tile_rows * tile_columns)
        )
        loaded_per_s = constants.load_bytes_per_flop * device.sm_bf16_flop_per_s * device.n_sms
        step_s = norm4(step_s, 2.0 * weights * deep * loads_per_flop / loaded_per_s)
    bytes_s = written / (constants.weight_frac * bandwidth) + read / (constants.activation_frac * bandwidth)
    return np.asarray(2 * device.kernels.launch().kernel_s + norm2(step_s, bytes_s))
