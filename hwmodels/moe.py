"""Time of the routed experts of an MoE layer on one device, from the tokens of every expert.

The law is of tiles and waves: a grouped GEMM is cut into tiles of BM tokens by BN columns, the tiles run in waves over
the multiprocessors, and the weights of every expert that has a token stream from memory meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.blends import norm2, norm4
from hwmodels.constants import MoeConstants, Roofline
from hwmodels.core_constants import CoreMoeConstants
from hwmodels.cores import Rows, experts_s
from hwmodels.devices import Device, computed_bytes
from hwmodels.measured_tables import log_of, moe_shape
from hwmodels.short_axes import reduced
from hwmodels.tiles import FASTEST, TILE_RULES, Tile
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE, ModelCard

Times = NDArray[np.float64]
Sizes = int | NDArray[np.integer]

ROOM = 1 << 30  # sums up to here fit into 32 bits, which halves the memory that they read
STEP = 64  # values of K that a tile multiplies in one step


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """One routed expert as one device holds it; `intermediate_size` is already divided by expert TP.

    Sizes are numbers, or arrays where rows of a table differ in shape.
    transposed  the weights are, as where gradients of the results become gradients of the inputs.
    value_bytes  of a weight as stored, where that is another width than `weight_dtype`, whose kernels multiply it.
    """

    hidden_size: Sizes
    intermediate_size: Sizes
    gated: bool
    weight_dtype: str
    transposed: bool = False
    value_bytes: float | None = None

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of a weight as it is stored and read, block scales included."""
        return BYTES_PER_VALUE[self.weight_dtype] if self.value_bytes is None else self.value_bytes

    @property
    def gemm_sizes(self) -> tuple[tuple[Sizes, Sizes], tuple[Sizes, Sizes]]:
        """(N, K) of the two GEMMs: up (with the gate beside it, where gated) and down; transposed in reverse."""
        up_columns = (2 if self.gated else 1) * self.intermediate_size
        if self.transposed:
            return (self.intermediate_size, self.hidden_size), (self.hidden_size, up_columns)
        return (up_columns, self.hidden_size), (self.hidden_size, self.intermediate_size)

    @property
    def weight_bytes(self) -> float:
        """Bytes of the expert's weights on the device; where sizes are numbers."""
        return float(sum(n * k for n, k in self.gemm_sizes)) * self.bytes_per_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWork:
    """What the law takes of the tokens of a device's experts.

    routed, active  [...]: tokens times choices, and slots with a token.
    row_tiles       rows of a tile -> [...]: tiles that the tokens of all slots fill, the last of a slot partly.
    n_slots         expert slots of the device.
    few, few_routed  [...]: slots with 1 to `few_tokens` tokens (of `expert_work`), and their tokens.
    own_tokens      tokens whose partial results the device sums.
    call_tokens     tokens that the kernels are called with.
    touched         [...]: rows that the kernels around the GEMMs move; more than `routed` where an engine passes rows
                    of remote experts along.
    """

    routed: NDArray[np.integer]
    active: NDArray[np.integer]
    row_tiles: dict[int, NDArray[np.integer]]
    n_slots: Sizes
    own_tokens: ArrayLike
    call_tokens: ArrayLike
    touched: ArrayLike
    few: NDArray[np.integer] | int = 0
    few_routed: NDArray[np.integer] | int = 0


def expert_shape(model: ModelCard, tp: int = 1) -> ExpertShape:
    """Shape of the model's routed experts on one of `tp` devices that share each expert.

    Raises ScenarioError where `tp` does not divide the intermediate size.
    """
    intermediate = model.expert_intermediate_size
    if tp < 1 or intermediate % tp:
        raise ScenarioError(f"experts tp {tp} does not divide the intermediate size {intermediate}; choose a divisor")
    return ExpertShape(
        hidden_size=model.exchange_size,
        intermediate_size=intermediate // tp,
        gated=model.gated,
        weight_dtype=model.expert_dtype or model.weight_dtype,
    )


def grouped_gemm_moe_s(
    slot_tokens: ArrayLike,
    shape: ExpertShape,
    device: Device,
    own_tokens: ArrayLike = 0,
    call_tokens: ArrayLike | None = None,
    n_slots: Sizes | None = None,
) -> Times:
    """Time of the routed experts of one device, permutation, activation and launches included: float64[...] [s].

    slot_tokens  int[..., slot]: tokens that each local expert slot receives.
    own_tokens   int[...] or one number: tokens whose partial results this device sums and writes; 0 where the combine
                 is not part of the kernel, as under expert parallelism.
    call_tokens  int[...]: distinct tokens of the call, by which some engines choose tiles; None: the routed tokens,
                 as many as if each had one choice here.
    n_slots      int[...]: slots of the device where they are fewer than `slot_tokens` has places; None: as many.

    The law is that of `moe_s`, corrected where a table holds the shape, and slowed as the device says. Raises
    HardwareError where the device has no peak or no constants for the weights.
    """
    constants = device.kernels.moe(shape.weight_dtype)
    rows = tile_rows(constants) if isinstance(constants, MoeConstants) else ()
    few_tokens = constants.vector_rows if isinstance(constants, CoreMoeConstants) else 0
    work = expert_work(slot_tokens, rows, own_tokens, call_tokens, few_tokens)
    if n_slots is not None:
        work = replace(work, n_slots=n_slots)
    factor = _measured_factor(work, shape, device) * device.experts_slowdown
    return moe_s(work, shape, device, constants) * factor


def _measured_factor(work: ExpertWork, shape: ExpertShape, device: Device) -> Times | float:
    """What the law is multiplied with by what tables hold: of balanced tokens, as many for each slot."""
    slots = np.asarray(work.n_slots)
    key = moe_shape(shape.hidden_size, shape.intermediate_size, shape.gated)
    point = log_of(work.routed / np.maximum(slots, 1))
    return device.measured.factor("moe", shape.weight_dtype, key, log_of(slots), point, near=True)


def expert_work(
    slot_tokens: ArrayLike,
    rows: tuple[int, ...],
    own_tokens: ArrayLike = 0,
    call_tokens: ArrayLike | None = None,
    few_tokens: int = 0,
) -> ExpertWork:
    """The work of int[..., slot] tokens, in tiles of the given numbers of rows; up to few_tokens are few."""
    counts = _roomy(np.asarray(slot_tokens))
    routed = _summed(counts)
    few = counts * (counts <= few_tokens) if few_tokens else counts[..., :0]
    return ExpertWork(
        routed=routed,
        active=reduced(np.add, counts != 0),
        row_tiles={number: _summed((counts + (number - 1)) >> (number.bit_length() - 1)) for number in rows},
        n_slots=counts.shape[-1],
        own_tokens=own_tokens,
        call_tokens=routed if call_tokens is None else call_tokens,
        touched=routed,
        few=reduced(np.add, few != 0),
        few_routed=_summed(few),
    )


def _roomy(counts: NDArray[np.integer]) -> NDArray[np.signedinteger]:
    """Counts [..., slot] in the narrowest type, of two, in which their sums are whole, rounded up to tiles or not.

    Raises TypeError for fractions of tokens.
    """
    roomy = counts.size == 0 or int(counts.max(initial=0)) < ROOM // max(counts.shape[-1], 1)
    return counts.astype(np.int32 if roomy else np.int64, casting="same_kind", copy=False)


def _summed(counts: NDArray[np.signedinteger]) -> NDArray[np.int64]:
    """Sums over the last axis, int64[...]; the counts have room for them."""
    return reduced(np.add, counts, dtype=counts.dtype).astype(np.int64, copy=False)


def tile_rows(constants: MoeConstants) -> tuple[int, ...]:
    """Rows of all tiles that the rule of these constants may choose; powers of two."""
    rule = TILE_RULES[constants.tiles]
    return tuple(sorted({rows for rows, _ in rule.tiles + (FASTEST if rule.tuned else ())}))


def moe_s(
    work: ExpertWork, shape: ExpertShape, device: Device, constants: MoeConstants | CoreMoeConstants | Roofline
) -> Times:
    """Time of the routed experts of one device under given constants: float64[...] [s].

    Law `roofline`: for both GEMMs the larger of flop and weight bytes, and the bytes of activations. Law `cores`:
    `hwmodels.cores.experts_s`, which takes the final sum as part of its times. Law `tiles`:

        T = fixed_s + n_slots expert_s + touched row_s + sum over GEMMs of sqrt(C^2 + W^2) + A / (activation_frac BW)
        C = ceil(row tiles ceil(N / BN) / SMs) (tile + wave_s)
        tile = norm4(2 BM BN K / (compute_frac peak / SMs), (rows a + BN w) K / (load_bytes_per_flop sm16))
        W = active N K w / (weight_frac BW)
        A = 2 bytes (touched (3 h + 3 I) + h own tokens)        2 I where not gated

    K is rounded up to a multiple of 64; a and w are bytes of an activation as multiplied and of a weight as stored;
    rows is the mean of tokens in a tile (masked rows are not loaded); sm16 is the bf16 peak of a multiprocessor.
    A: a permutation reads and writes h, the activation reads 2 I and writes I, the final sum reads h for each row and
    writes h for each token.
    Without any token the fixed times are left: an engine launches the kernels of an idle device all the same.

    No L2, no throttling. Errors on unseen shapes are in docs/background/calibration.md.
    """
    if isinstance(constants, CoreMoeConstants):
        return _on_cores_s(work, shape, device, constants)
    if isinstance(constants, Roofline):
        return _roofline_s(work, shape, device, constants)
    rule = TILE_RULES[constants.tiles]
    if rule.by == "fastest":
        gemms_s = _fastest_s(rule.tiles, work, shape, device, constants)
    elif len(rule.tiles) == 1:
        gemms_s = _gemms_s(rule.tiles[0], work, shape, device, constants)
    else:
        chosen = rule.choice(work.call_tokens, work.n_slots)
        gemms_s = np.zeros(np.shape(work.routed))
        for place, tile in enumerate(rule.tiles):
            if (takes := chosen == place).any():
                gemms_s = np.where(takes, _gemms_s(tile, work, shape, device, constants), gemms_s)
    if rule.tuned:
        tuned = rule.is_tuned(work.n_slots, shape.intermediate_size)
        if tuned.any():
            gemms_s = np.where(tuned, _fastest_s(FASTEST, work, shape, device, constants), gemms_s)
    activation_s = activation_bytes(work.touched, shape, work.own_tokens) / (
        constants.activation_frac * device.memory_bytes_per_s
    )
    fixed_s = constants.fixed_s + constants.expert_s * np.asarray(work.n_slots, np.float64)
    return np.asarray(fixed_s + constants.row_s * np.asarray(work.touched) + gemms_s + activation_s)


def activation_bytes(routed_tokens: ArrayLike, shape: ExpertShape, own_tokens: ArrayLike = 0) -> Times:
    """Bytes of bf16 activations that move outside the GEMMs: float64[...]; see `moe_s`.

    Backwards the activation reads the gradient of its result and its inputs, and writes the gradients of its inputs.
    """
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    of_activation = (5 if shape.gated else 3) if shape.transposed else (3 if shape.gated else 2)
    values = 3 * hidden + of_activation * intermediate
    routed, own = np.asarray(routed_tokens, dtype=np.float64), np.asarray(own_tokens, dtype=np.float64)
    return BYTES_PER_VALUE["bf16"] * (values * routed + hidden * own)


def _on_cores_s(work: ExpertWork, shape: ExpertShape, device: Device, constants: CoreMoeConstants) -> Times:
    if shape.value_bytes is not None:
        raise ScenarioError(f"bits: the laws of {device.card.name}'s cores know the widths of data types alone")
    rows = Rows(
        few=work.few, few_rows=work.few_routed, many=work.active - work.few, many_rows=work.routed - work.few_routed
    )
    (columns, hidden), _ = shape.gemm_sizes
    return experts_s(rows, hidden, (columns, shape.intermediate_size), shape.weight_dtype, device, constants)


def _roofline_s(work: ExpertWork, shape: ExpertShape, device: Device, constants: Roofline) -> Times:
    bandwidth = constants.memory_frac * device.memory_bytes_per_s
    flop_per_s = constants.compute_frac * device.peak_flop_per_s(shape.weight_dtype)
    total_s = constants.fixed_s + activation_bytes(work.touched, shape, work.own_tokens) / bandwidth
    for n, k in shape.gemm_sizes:
        streamed_s = work.active * (n * k * shape.bytes_per_weight / bandwidth)
        total_s = total_s + np.maximum(work.routed * (2.0 * n * k / flop_per_s), streamed_s)
    return np.asarray(total_s)


def _fastest_s(
    tiles: tuple[Tile, ...], work: ExpertWork, shape: ExpertShape, device: Device, constants: MoeConstants
) -> Times:
    best_s = _gemms_s(tiles[0], work, shape, device, constants)
    for tile in tiles[1:]:
        best_s = np.minimum(best_s, _gemms_s(tile, work, shape, device, constants))
    return best_s


def _gemms_s(tile: Tile, work: ExpertWork, shape: ExpertShape, device: Device, constants: MoeConstants) -> Times:
    """Time of both grouped GEMMs in tiles of one size."""
    rows, columns = tile
    row_tiles = work.row_tiles[rows]
    filled = work.routed / np.maximum(row_tiles, 1)  # mean tokens of a tile
    weight_bytes = shape.bytes_per_weight
    weight_frac = constants.small_tile_frac if tile == (64, 64) else None
    streamed_bytes_per_s = (weight_frac or constants.weight_frac) * device.memory_bytes_per_s
    total_s: Times | float = 0.0
    for number, (n, k) in enumerate(shape.gemm_sizes):
        steps_k = -(-k // STEP) * STEP
        tile_s = (
            2.0
            * rows
            * columns
            * steps_k
            / (constants.compute_frac * device.peak_flop_per_s(shape.weight_dtype) / device.n_sms)
        )
        if constants.load_bytes_per_flop is not None:
            loaded = (filled * computed_bytes(shape.weight_dtype) + columns * weight_bytes) * steps_k
            tile_s = norm4(tile_s, loaded / (constants.load_bytes_per_flop * device.sm_bf16_flop_per_s))
        waves = np.ceil(row_tiles * -(-n // columns) / device.n_sms)
        computed_s = waves * (tile_s + constants.wave_s)
        streamed_s = work.active * (n * k * weight_bytes / streamed_bytes_per_s)
        gemm_s = norm2(computed_s, streamed_s)
        if number == 1 and constants.ragged_factor != 1:
            gemm_s = gemm_s * np.where(np.asarray(k) % 16 == 0, 1.0, constants.ragged_factor)
        total_s = total_s + gemm_s
    return np.asarray(total_s)
