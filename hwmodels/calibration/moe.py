"""Tables of fused MoE kernels as calibration problems: tokens of every expert rebuilt, rows that mean nothing left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Parameter, Rows, Times
from hwmodels.calibration.problem import Problem
from hwmodels.calibration.rows import DTYPES, Reasons, leave_unknown_dtypes, number_shapes
from hwmodels.constants import MoeConstants
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.moe import ExpertShape, ExpertWork, moe_s
from hwmodels.validation.counts import DRAWS, expert_counts, is_known
from hwmodels.validation.timings import Timings
from scenarios.models import BYTES_PER_VALUE

TILE_ROWS = (16, 32, 64, 128)
SHAPE = ("hidden_size", "inter_size", "topk", "num_experts")

# Measured without a gate matrix by TensorRT-LLM and vLLM 0.24, with one by older collectors: (hidden, intermediate).
UNGATED_SHAPES = {(1024, 2688), (2048, 5120), (2688, 1856), (4096, 2688), (8192, 5120)}
# (hidden, intermediate, top-k, experts) of DeepSeek-V3, which vLLM and SGLang route in groups in fp8_block: more weights
# would be read than memory can deliver, unless about half the experts have no token.
GROUPED = (7168, 2048, 8, 256)
# On Hopper these take 4 to 8 times as long as the same shapes elsewhere: (start of the kernel source, data type).
UNTUNED = (("vllm_modeloptfp8moe_flashinfer", "fp8"), ("vllm_fp8moe_flashinfer", "fp8"), ("sglang_flashinfer", "bf16"))

PARAMETERS = (
    Parameter(name="fixed_s", start=27e-6, low=1e-6, high=2e-4),
    Parameter(name="expert_s", start=1e-8, low=1e-12, high=1e-6),
    Parameter(name="row_s", start=1e-9, low=1e-13, high=1e-7),
    Parameter(name="wave_s", start=1e-6, low=1e-8, high=1e-5),
    Parameter(name="compute_frac", start=0.8, low=0.1, high=1.1),
    Parameter(name="load_bytes_per_flop", start=0.025, low=0.003, high=0.15),
    Parameter(name="weight_frac", start=0.9, low=0.3, high=1.0),
    Parameter(name="activation_frac", start=0.45, low=0.05, high=1.0),
)
RAGGED = Parameter(name="ragged_factor", start=3.0, low=1.0, high=30.0)
SMALL_TILE = Parameter(name="small_tile_frac", start=0.6, low=0.2, high=1.0)

RULES = {
    ("bf16", "vllm"): ("vllm-bf16", "fastest"),
    ("fp8_block", "vllm"): ("vllm-fp8-block", "fastest"),
    ("bf16", "sglang"): ("sglang-bf16", "fastest"),
    ("fp8_block", "sglang"): ("sglang-fp8-block", "fastest"),
}
"""Rules of tiles that are tried, by data type and start of the kernel source; elsewhere the fastest tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """Rebuilt tokens: int64[row, draw] each; a balanced row has the same in every draw. touched: float64[row]."""

    routed: NDArray[np.int64]
    active: NDArray[np.int64]
    row_tiles: dict[int, NDArray[np.int64]]
    touched: NDArray[np.float64]


def moe_problems(timings: Timings, device: Device, reasons: Reasons) -> list[Problem]:
    """A problem for each kernel source and data type of a MoE table; writes into `reasons` why rows are left out.

    Constants are fitted on balanced rows of one rank; skewed rows and those of expert parallelism only judge.
    """
    _leave_out(timings, device, reasons)
    names, problems = timings.texts("moe_dtype"), []
    for source, name in sorted(set(zip(timings.source.tolist(), names.tolist(), strict=True))):
        rows = np.flatnonzero((timings.source == source) & (names == name) & (reasons == ""))
        alone = timings.ints("moe_ep_size")[rows] == 1
        if not alone.any():
            reasons[rows] = "kernel that no row of one rank was measured with"
            continue
        counts = _rebuild(timings.rows(rows))
        streams = _leave_cached(timings.rows(rows), counts, DTYPES[name], device)
        reasons[rows[~streams]] = "active weights fit into the L2 cache, repeated launches read them from there"
        if streams.any():
            kept = _kept(counts, streams)
            problems.append(_problem(timings.rows(rows[streams]), rows[streams], kept, DTYPES[name], device))
    return problems


def _leave_out(timings: Timings, device: Device, reasons: Reasons) -> None:
    hidden, inter = timings.ints("hidden_size"), timings.ints("inter_size")
    names = timings.texts("moe_dtype")
    ungated = np.array([shape in UNGATED_SHAPES for shape in zip(hidden.tolist(), inter.tolist(), strict=True)], bool)
    reasons[ungated] = "shape whose gate differs between collectors"
    distributions = timings.texts("distribution")
    reasons[~np.array([is_known(name) for name in distributions], bool)] = "distribution that cannot be rebuilt"
    shapes = np.stack([timings.ints(name) for name in SHAPE], axis=1)
    grouped = (shapes == GROUPED).all(axis=1) & (names == "fp8_block")
    reasons[grouped & ~_starts(timings, "moe_torch_flow")] = "group-limited routing: active experts unknown"
    if device.card.name.startswith(("h100", "h200")):
        for start, name in UNTUNED:
            reasons[_starts(timings, start) & (names == name)] = "kernel that was measured without tuning"
    leave_unknown_dtypes(names, device, reasons)


def _starts(timings: Timings, text: str) -> NDArray[np.bool_]:
    return np.char.startswith(timings.source, text)


def _rebuild(timings: Timings) -> _Counts:
    """Tokens of the experts of rank 0 in every row.

    Triton's kernels pass by rows of remote experts, but the kernels around the GEMMs move them; those of TensorRT-LLM
    and FlashInfer see local rows only.
    """
    columns = [timings.ints(name).tolist() for name in ("num_tokens", "topk", "num_experts", "moe_ep_size")]
    shape = (len(timings), DRAWS)
    routed, active = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    row_tiles = {number: np.zeros(shape, np.int64) for number in TILE_ROWS}
    distributions = timings.texts("distribution").tolist()
    for row, (kind, tokens, top_k, experts, ranks) in enumerate(zip(distributions, *columns, strict=True)):
        counts = expert_counts(kind, tokens, top_k, experts, ranks)
        routed[row], active[row] = counts.sum(axis=1), (counts > 0).sum(axis=1)
        for number in TILE_ROWS:
            row_tiles[number][row] = (-(-counts // number)).sum(axis=1)
    every = timings.ints("num_tokens") * timings.ints("topk")
    triton = _starts(timings, "vllm_fused_moe") | (np.char.find(timings.source, "triton") >= 0)
    touched = np.where(triton, every, routed.mean(axis=1))
    return _Counts(routed=routed, active=active, row_tiles=row_tiles, touched=touched)


def _kept(counts: _Counts, rows: NDArray[np.bool_]) -> _Counts:
    return _Counts(
        routed=counts.routed[rows],
        active=counts.active[rows],
        row_tiles={number: tiles[rows] for number, tiles in counts.row_tiles.items()},
        touched=counts.touched[rows],
    )


def _shape(timings: Timings, dtype: str) -> ExpertShape:
    return ExpertShape(
        hidden_size=timings.ints("hidden_size")[:, None],
        intermediate_size=(timings.ints("inter_size") // timings.ints("moe_tp_size"))[:, None],
        gated=True,
        weight_dtype=dtype,
    )


def _leave_cached(timings: Timings, counts: _Counts, dtype: str, device: Device) -> NDArray[np.bool_]:
    """Whether the active weights exceed the L2 cache: bool[row]."""
    l2_bytes = device.card.l2_bytes.value if device.card.l2_bytes is not None else 0.0
    values = sum(np.asarray(n * k)[:, 0] for n, k in _shape(timings, dtype).gemm_sizes)
    exceeds: NDArray[np.bool_] = counts.active.mean(axis=1) * values * BYTES_PER_VALUE[dtype] > l2_bytes
    return exceeds


def _problem(timings: Timings, rows: Rows, counts: _Counts, dtype: str, device: Device) -> Problem:
    engine = str(timings.source[0]).partition("_")[0]
    rules = RULES.get((dtype, engine), ("fastest",))
    triton = engine in ("vllm", "sglang") and dtype == "bf16"
    balanced, ranks = timings.texts("distribution") == "balanced", timings.ints("moe_ep_size")
    kinds = np.where(balanced, "balanced", "skewed").astype("U20")
    kinds[ranks > 1] = "EP 2 to 32"
    kinds[ranks > 32] = "EP above 32"
    small = (SMALL_TILE,) if "sglang-bf16" in rules else ()
    return Problem(
        block="moe",
        dtype=dtype,
        rows=rows,
        measured_s=timings.measured_s,
        shapes=_shapes(timings),
        kinds=kinds,
        fitting=(ranks == 1) & (balanced if balanced.any() else True),
        law=_law(timings, counts, _shape(timings, dtype), device),
        parameters=PARAMETERS + ((RAGGED,) if triton else ()) + small,
        constants=MoeConstants,
        options=tuple({"law": "tiles", "tiles": rule} for rule in rules),
    )


def _shapes(timings: Timings) -> NDArray[np.int64]:
    """Numbers of the model shapes; shares of tensor parallelism count as shapes where there is only one model."""
    shapes = number_shapes(timings, SHAPE)
    return shapes if shapes.max() > 0 else number_shapes(timings, (*SHAPE, "moe_tp_size"))


def _law(timings: Timings, counts: _Counts, shape: ExpertShape, device: Device) -> Callable[[Fitted, Rows], Times]:
    tokens = timings.ints("num_tokens")[:, None]
    slots = (timings.ints("num_experts") // timings.ints("moe_ep_size"))[:, None]
    balanced = timings.texts("distribution") == "balanced"

    def seconds(constants: Fitted, places: Rows) -> Times:
        draws = slice(0, 1 if balanced[places].all() else DRAWS)
        work = ExpertWork(
            routed=counts.routed[places, draws],
            active=counts.active[places, draws],
            row_tiles={number: tiles[places, draws] for number, tiles in counts.row_tiles.items()},
            n_slots=slots[places],
            own_tokens=tokens[places],
            call_tokens=tokens[places],
            touched=counts.touched[places, None],
        )
        own = ExpertShape(
            hidden_size=np.asarray(shape.hidden_size)[places],
            intermediate_size=np.asarray(shape.intermediate_size)[places],
            gated=shape.gated,
            weight_dtype=shape.weight_dtype,
        )
        times: Times = moe_s(work, own, device, constants).mean(axis=-1)  # type: ignore[arg-type]
        return times

    return seconds
