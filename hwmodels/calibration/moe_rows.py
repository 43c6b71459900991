"""Rows of MoE tables: which of them mean nothing, and the tokens of every expert in the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.rows import Reasons, leave_repeated, leave_unknown_dtypes
from hwmodels.devices import Device
from hwmodels.moe import ExpertShape
from hwmodels.validation.counts import DRAWS, expert_counts, is_known
from hwmodels.validation.timings import NOT_STATED, Timings
from scenarios.errors import HardwareError
from scenarios.models import BYTES_PER_VALUE

GIVEN_COUNTS = "expert_tokens"  # column of tables that state the tokens of every expert
FEW_TOKENS = (0, 1, 2, 3, 4)  # up to which experts may be told apart as having few
SHAPE = ("hidden_size", "inter_size", "topk", "num_experts")
TILE_ROWS = (16, 32, 64, 128)
MISTUNED = 1.5  # times that a share of a layer takes longer than a whole that holds it

# Measured without a gate matrix by TensorRT-LLM and vLLM 0.24, with one by older collectors: (hidden, intermediate).
UNGATED_SHAPES = {(1024, 2688), (2048, 5120), (2688, 1856), (4096, 2688), (8192, 5120)}
# (hidden, intermediate, top-k, experts) of DeepSeek-V3, which vLLM and SGLang route in groups in fp8_block: memory
# could not deliver the weights, unless about half the experts have no token.
GROUPED = (7168, 2048, 8, 256)
# On Hopper these take 4 to 8 times as long as the same shapes elsewhere: (start of the kernel source, data type).
UNTUNED = (("vllm_modeloptfp8moe_flashinfer", "fp8"), ("vllm_fp8moe_flashinfer", "fp8"), ("sglang_flashinfer", "bf16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens, rebuilt or given: int64[row, draw] each, a balanced row the same in every draw; touched: float64[row].

    few, few_routed  by number of tokens that still are few: experts with 1 to so many tokens, and their tokens.
    """

    routed: NDArray[np.int64]
    active: NDArray[np.int64]
    row_tiles: dict[int, NDArray[np.int64]]
    touched: NDArray[np.float64]
    few: dict[int, NDArray[np.int64]]
    few_routed: dict[int, NDArray[np.int64]]


def leave_out(timings: Timings, device: Device, reasons: Reasons) -> None:
    """Write into `reasons` why rows of a MoE table are not predicted, as far as the columns tell."""
    hidden, inter = timings.ints("hidden_size"), timings.ints("inter_size")
    names = timings.texts("moe_dtype")
    ungated = np.array([shape in UNGATED_SHAPES for shape in zip(hidden.tolist(), inter.tolist(), strict=True)], bool)
    reasons[ungated] = "shape whose gate differs between collectors"
    leave_repeated(timings, reasons)
    if GIVEN_COUNTS in timings.columns:
        leave_unknown_dtypes(names, device, reasons)
        return
    distributions = timings.texts("distribution")
    reasons[~np.array([is_known(name) for name in distributions], bool)] = "distribution that cannot be rebuilt"
    shapes = np.stack([timings.ints(name) for name in SHAPE], axis=1)
    grouped = (shapes == GROUPED).all(axis=1) & (names == "fp8_block")
    named = ~starts(timings, "moe_torch_flow") & ~starts(timings, NOT_STATED)
    reasons[grouped & named] = "group-limited routing: active experts unknown"
    if device.card.name.startswith(("h100", "h200")):
        for start, name in UNTUNED:
            reasons[starts(timings, start) & (names == name)] = "kernel that was measured without tuning"
    mistuned = is_mistuned(timings) & ~starts(timings, "sglang") & (np.char.find(timings.source, "triton") < 0)
    reasons[mistuned] = "failure of the autotuner: a share of the layer takes longer than the whole"
    leave_unknown_dtypes(names, device, reasons)


def is_mistuned(timings: Timings) -> NDArray[np.bool_]:
    """Whether a row belongs to a measurement that no work explains: bool[row].

    The median over tokens of its time exceeds `MISTUNED` times that of the fastest measurement of at least as much
    work: the same layer and kernel, as few or fewer shares (tp, ep), any distribution.
    """
    names = (*SHAPE, "moe_tp_size", "moe_ep_size", "num_tokens")
    columns = [timings.ints(name) for name in names]
    texts = [np.unique(timings.texts(name), return_inverse=True)[1] for name in ("moe_dtype", "distribution")]
    source = np.unique(timings.source, return_inverse=True)[1]
    layer = np.unique(np.stack([*columns[:4], texts[0], source], axis=1), axis=0, return_inverse=True)[1].ravel()
    mistuned = np.zeros(len(timings), dtype=bool)
    for number in range(int(layer.max()) + 1):
        rows = np.flatnonzero(layer == number)
        axes = [np.unique(c[rows], return_inverse=True) for c in (*columns[4:], texts[1])]
        place = tuple(axis[1].ravel() for axis in axes)
        times = np.full([len(axis[0]) for axis in axes], np.inf)
        times[place] = timings.measured_s[rows]
        whole = np.minimum.accumulate(np.minimum.accumulate(times.min(axis=3), axis=0), axis=1)
        ratio = np.full(times.shape, np.nan)
        np.divide(times, whole[..., None], out=ratio, where=np.isfinite(times))
        measured = np.isfinite(ratio).any(axis=2)
        ratio[~np.broadcast_to(measured[:, :, None, :], ratio.shape)] = 1.0  # shares that nobody measured
        mistuned[rows] = (np.nanmedian(ratio, axis=2) > MISTUNED)[place[0], place[1], place[3]]
    return mistuned


def starts(timings: Timings, text: str) -> NDArray[np.bool_]:
    """Rows whose kernel source starts with `text`: bool[row]."""
    return np.char.startswith(timings.source, text)


def rebuild(timings: Timings) -> Counts:
    """Tokens of the experts of rank 0 in every row, as the table states them or as its collector drew them.

    Triton's kernels pass by rows of remote experts, but the kernels around the GEMMs move them; those of TensorRT-LLM
    and FlashInfer see local rows only.
    """
    shape = (len(timings), DRAWS)
    routed, active = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    row_tiles = {number: np.zeros(shape, np.int64) for number in TILE_ROWS}
    few = {number: np.zeros(shape, np.int64) for number in FEW_TOKENS}
    few_routed = {number: np.zeros(shape, np.int64) for number in FEW_TOKENS}
    for row, counts in enumerate(counts_of_rows(timings)):
        routed[row], active[row] = counts.sum(axis=1), (counts > 0).sum(axis=1)
        for number in TILE_ROWS:
            row_tiles[number][row] = (-(-counts // number)).sum(axis=1)
        for number in FEW_TOKENS:
            small = counts * (counts <= number)
            few[number][row], few_routed[number][row] = (small > 0).sum(axis=1), small.sum(axis=1)
    every = timings.ints("num_tokens") * timings.ints("topk")
    triton = starts(timings, "vllm_fused_moe") | (np.char.find(timings.source, "triton") >= 0)
    touched = np.where(triton, every, routed.mean(axis=1))
    return Counts(routed=routed, active=active, row_tiles=row_tiles, touched=touched, few=few, few_routed=few_routed)


def counts_of_rows(timings: Timings) -> Iterator[NDArray[np.int64]]:
    """Tokens of the experts of every row, int64[draw, expert]. Raises HardwareError where given ones make no sense."""
    columns = [timings.ints(name).tolist() for name in ("num_tokens", "topk", "num_experts", "moe_ep_size")]
    if GIVEN_COUNTS not in timings.columns:
        for kind, *sizes in zip(timings.texts("distribution").tolist(), *columns, strict=True):
            yield expert_counts(kind, *sizes)
        return
    for text, tokens, top_k, experts, ranks in zip(timings.texts(GIVEN_COUNTS).tolist(), *columns, strict=True):
        words = text.split()
        if not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words) or len(words) != experts // ranks:
            raise HardwareError(f"{timings.path}: {GIVEN_COUNTS} '{text}' must be {experts // ranks} whole numbers")
        counts = np.array(words, np.int64)[None, :]
        if ranks == 1 and int(counts.sum()) != tokens * top_k:
            raise HardwareError(f"{timings.path}: {GIVEN_COUNTS} sum to {counts.sum()}, not to {tokens} x {top_k}")
        yield counts


def kept(counts: Counts, rows: NDArray[np.bool_]) -> Counts:
    """The counts of the chosen rows."""
    return Counts(
        routed=counts.routed[rows],
        active=counts.active[rows],
        row_tiles={number: tiles[rows] for number, tiles in counts.row_tiles.items()},
        touched=counts.touched[rows],
        few={number: few[rows] for number, few in counts.few.items()},
        few_routed={number: few[rows] for number, few in counts.few_routed.items()},
    )


def shape_of(timings: Timings, dtype: str) -> ExpertShape:
    """Experts of every row on one rank, sizes int64[row, 1]."""
    return ExpertShape(
        hidden_size=timings.ints("hidden_size")[:, None],
        intermediate_size=(timings.ints("inter_size") // timings.ints("moe_tp_size"))[:, None],
        gated=True,
        weight_dtype=dtype,
    )


def exceeds_cache(timings: Timings, counts: Counts, dtype: str, device: Device) -> NDArray[np.bool_]:
    """Whether the active weights exceed the L2 cache: bool[row]."""
    l2_bytes = device.card.l2_bytes.value if device.card.l2_bytes is not None else 0.0
    values = sum(np.asarray(n * k)[:, 0] for n, k in shape_of(timings, dtype).gemm_sizes)
    exceeds: NDArray[np.bool_] = counts.active.mean(axis=1) * values * BYTES_PER_VALUE[dtype] > l2_bytes
    return exceeds
