"""Time of an MoE layer's parts on one device: routed experts, gate and permutation.

The law of the routed experts is the tile and wave model: a grouped GEMM is cut into tiles of BM tokens by 128 columns,
the tiles run in waves over the SMs, and the weights of every expert that has a token stream from memory meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.devices import Device
from hwmodels.gemm import BF16_BYTES, Times, gemm_s, stream_s
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE, ModelCard

TILE_COLUMNS = 128
FP32_BYTES = BYTES_PER_VALUE["fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """One routed expert as one device holds it; `intermediate_size` is already divided by expert TP."""

    hidden_size: int
    intermediate_size: int
    gated: bool
    weight_dtype: str
    activation_dtype: str

    @property
    def gemm_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(N, K) of the two GEMMs: up (with the gate beside it, where gated) and down."""
        up_columns = (2 if self.gated else 1) * self.intermediate_size
        return (up_columns, self.hidden_size), (self.hidden_size, self.intermediate_size)

    @property
    def weight_bytes(self) -> float:
        """Bytes of the expert's weights on the device."""
        return sum(n * k for n, k in self.gemm_sizes) * BYTES_PER_VALUE[self.weight_dtype]


def expert_shape(model: ModelCard, tp: int = 1) -> ExpertShape:
    """Shape of the model's routed experts on one of `tp` devices that share each expert.

    Raises ScenarioError where `tp` does not divide the intermediate size.
    """
    intermediate = model.expert_intermediate_size
    if tp < 1 or intermediate % tp:
        raise ScenarioError(f"experts tp {tp} does not divide the intermediate size {intermediate}; choose a divisor")
    return ExpertShape(
        hidden_size=model.hidden_size,
        intermediate_size=intermediate // tp,
        gated=model.gated,
        weight_dtype=model.expert_dtype or model.weight_dtype,
        activation_dtype=model.activation_dtype,
    )


def grouped_gemm_moe_s(
    slot_tokens: ArrayLike, shape: ExpertShape, device: Device, device_tokens: ArrayLike = 0
) -> Times:
    """Time of the routed experts of one device, permutation, activation and launches included: float64[...] [s].

    slot_tokens    int[..., slot]: tokens that each local expert slot receives.
    device_tokens  int[...] or one number: tokens whose partial results this device sums and writes; 0 where the
                   combine is not part of the kernel, as under expert parallelism.

    T = moe_fixed_s + min over BM in {16, 64, 128} of sum over both GEMMs of pnorm4(compute, weights) + A / (a * BW),
    compute = ceil(tiles / SMs) * (2 * BM * 128 * K / (r_BM * peak / SMs) + wave_s),
    tiles = sum over slots of ceil(tokens / BM) * ceil(N / 128), weights = active * N * K * bytes / (memory_frac * BW),
    active = slots with a token, A = `activation_bytes`, a = activation_memory_frac, pnorm4(x, y) = (x^4 + y^4)^(1/4).
    Without any token only moe_fixed_s is left: an engine launches the kernels of an idle device all the same.

    One column width, no L2, no throttling. Mean, median and 90th percentile of the error are 6, 3 and 14 % on the bf16
    TensorRT-LLM 1.3.0rc20 rows of aiconfigurator 0.12.0 (H200, one rank, balanced) for 27 us, fractions .25/.5/1 of the
    peak, 1 us per wave, 0.9 and 0.4 of BW: typical constants, not fitted to shapes.
    """
    # Small integer types would overflow where a tile is rounded up; fractions of tokens raise TypeError.
    counts = np.asarray(slot_tokens).astype(np.int64, casting="same_kind", copy=False)
    weight_s4 = _weights_s4(np.count_nonzero(counts, axis=-1), shape, device)
    gemms_s = _gemms_s(counts, weight_s4, 16, shape, device)
    for tile_rows in (64, 128):
        gemms_s = np.minimum(gemms_s, _gemms_s(counts, weight_s4, tile_rows, shape, device))
    bandwidth = device.constants.activation_memory_frac.value * device.memory_bytes_per_s
    activation_s = activation_bytes(counts.sum(axis=-1), shape, device_tokens) / bandwidth
    return device.constants.moe_fixed_s.value + gemms_s + activation_s


def activation_bytes(routed_tokens: ArrayLike, shape: ExpertShape, device_tokens: ArrayLike = 0) -> Times:
    """Bytes of activations that the routed experts read and write: float64[...].

    Per routed token 2h values (gather: read and write) and 5I (gate and up written, read, their product written; 3I
    where not gated); per token of `device_tokens` 2h more (finalise: result read and written).
    """
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    values = 2 * hidden + (5 if shape.gated else 3) * intermediate
    routed = np.asarray(routed_tokens, dtype=np.float64)
    finalised = np.asarray(device_tokens, dtype=np.float64)
    return BYTES_PER_VALUE[shape.activation_dtype] * (values * routed + 2 * hidden * finalised)


def gate_s(tokens: ArrayLike, hidden: int, n_experts: int, device: Device) -> Times:
    """Time of the router: a bf16 GEMM to the experts' scores, then top-k over float32 scores: float64[...] [s]."""
    scores_bytes = np.asarray(tokens, dtype=np.float64) * (n_experts * FP32_BYTES)
    top_k_s = stream_s(scores_bytes, device)
    return gemm_s(tokens, n_experts, hidden, "bf16", device) + top_k_s


def permute_s(routed_tokens: ArrayLike, hidden: int, device: Device) -> Times:
    """Time of a separate kernel that reorders bf16 rows, one read and one write each: float64[...] [s].

    For engines that permute around an exchange; `grouped_gemm_moe_s` already holds the permutation of a fused layer.
    """
    moved_bytes = np.asarray(routed_tokens, dtype=np.float64) * (2 * hidden * BF16_BYTES)
    bandwidth = device.constants.activation_memory_frac.value * device.memory_bytes_per_s
    return device.constants.kernel_s.value + moved_bytes / bandwidth


def _weights_s4(active: ArrayLike, shape: ExpertShape, device: Device) -> tuple[Times, ...]:
    """Fourth power of the time that the active experts' weights of each GEMM take to stream."""
    bandwidth = device.constants.memory_frac.value * device.memory_bytes_per_s
    bytes_per_weight = BYTES_PER_VALUE[shape.weight_dtype]
    active_slots = np.asarray(active, dtype=np.float64)
    return tuple(_fourth_power(active_slots * (n * k * bytes_per_weight / bandwidth)) for n, k in shape.gemm_sizes)


def _gemms_s(
    counts: NDArray[np.int64], weight_s4: tuple[Times, ...], tile_rows: int, shape: ExpertShape, device: Device
) -> Times:
    """Time of both grouped GEMMs with tiles of `tile_rows` tokens, the last tile of a slot partly filled."""
    constants = device.constants
    frac = {16: constants.tile_frac_16, 64: constants.tile_frac_64, 128: constants.tile_frac_128}[tile_rows].value
    sm_flop_per_s = frac * device.peak_flop_per_s(shape.weight_dtype) / device.n_sms
    shift = tile_rows.bit_length() - 1  # division by a power of two
    row_tiles = ((counts + (tile_rows - 1)) >> shift).sum(axis=-1)
    total_s = np.zeros(np.shape(row_tiles))
    for (columns, depth), streamed_s4 in zip(shape.gemm_sizes, weight_s4, strict=True):
        tile_s = 2 * tile_rows * TILE_COLUMNS * depth / sm_flop_per_s + constants.wave_s.value
        waves = np.ceil(row_tiles * -(-columns // TILE_COLUMNS) / device.n_sms)
        # Square roots, unlike powers of 1/4, are exactly rounded: scaled hardware gives exactly scaled times.
        total_s += np.sqrt(np.sqrt(_fourth_power(waves * tile_s) + streamed_s4))
    return total_s


def _fourth_power(values: Times) -> Times:
    squares = values * values
    squares *= squares
    return squares
