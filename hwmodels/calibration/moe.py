"""Tables of fused MoE kernels as calibration problems."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration import cores
from hwmodels.calibration.cores import has_cores
from hwmodels.calibration.fit import Parameter, Rows, Times
from hwmodels.calibration.moe_rows import GIVEN_COUNTS, SHAPE, Counts, exceeds_cache, kept, leave_out, rebuild, shape_of
from hwmodels.calibration.problem import Problem
from hwmodels.calibration.rows import DTYPES, Reasons, number_shapes, rotates
from hwmodels.constants import MoeConstants
from hwmodels.core_constants import CoreMoeConstants
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.moe import ExpertShape, ExpertWork, moe_s
from hwmodels.validation.counts import DRAWS
from hwmodels.validation.timings import Timings

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


def moe_problems(timings: Timings, device: Device, reasons: Reasons) -> list[Problem]:
    """A problem for each kernel source and data type of a MoE table; writes into `reasons` why rows are left out.

    Constants are fitted on balanced rows of one rank, and on skewed ones where the table states the tokens of every
    expert; other skewed rows and those of expert parallelism only judge.
    """
    leave_out(timings, device, reasons)
    names, problems = timings.texts("moe_dtype"), []
    for source, name in sorted(set(zip(timings.source.tolist(), names.tolist(), strict=True))):
        rows = np.flatnonzero((timings.source == source) & (names == name) & (reasons == ""))
        alone = timings.ints("moe_ep_size")[rows] == 1
        if not alone.any():
            reasons[rows] = "kernel that no row of one rank was measured with"
            continue
        counts = rebuild(timings.rows(rows))
        streams = exceeds_cache(timings.rows(rows), counts, DTYPES[name], device) | rotates(timings.rows(rows))
        reasons[rows[~streams]] = "active weights fit into the L2 cache, repeated launches read them from there"
        if streams.any():
            chosen = kept(counts, streams)
            problems.append(_problem(timings.rows(rows[streams]), rows[streams], chosen, DTYPES[name], device))
    return problems


def _problem(timings: Timings, rows: Rows, counts: Counts, dtype: str, device: Device) -> Problem:
    engine = str(timings.source[0]).partition("_")[0]
    rules = RULES.get((dtype, engine), ("fastest",))
    triton = engine in ("vllm", "sglang") and dtype == "bf16"
    balanced, ranks = timings.texts("distribution") == "balanced", timings.ints("moe_ep_size")
    kinds = np.where(balanced, "balanced", "skewed").astype("U20")
    kinds[ranks > 1] = np.where(balanced, "EP 2-32 balanced", "EP 2-32 skewed")[ranks > 1]
    kinds[ranks > 32] = "EP above 32"
    small = (SMALL_TILE,) if "sglang-bf16" in rules else ()
    on_cores = has_cores(device)
    tiled = PARAMETERS + ((RAGGED,) if triton else ()) + small
    given = GIVEN_COUNTS in timings.columns
    return Problem(
        block="moe",
        dtype=dtype,
        rows=rows,
        measured_s=timings.measured_s,
        shapes=_shapes(timings),
        kinds=kinds,
        fitting=(ranks == 1) & (balanced if balanced.any() and not given else True),
        law=_law(timings, counts, shape_of(timings, dtype), device),
        parameters=cores.MOE if on_cores else tiled,
        constants=CoreMoeConstants if on_cores else MoeConstants,
        options=cores.VECTOR_ROWS if on_cores else tuple({"law": "tiles", "tiles": rule} for rule in rules),
    )


def _shapes(timings: Timings) -> NDArray[np.int64]:
    """Numbers of the model shapes; shares of tensor parallelism count as shapes where there is only one model."""
    shapes = number_shapes(timings, SHAPE)
    return shapes if shapes.max() > 0 else number_shapes(timings, (*SHAPE, "moe_tp_size"))


def _law(timings: Timings, counts: Counts, shape: ExpertShape, device: Device) -> Callable[[Fitted, Rows], Times]:
    tokens = timings.ints("num_tokens")[:, None]
    slots = (timings.ints("num_experts") // timings.ints("moe_ep_size"))[:, None]
    balanced = timings.texts("distribution") == "balanced"

    def seconds(constants: Fitted, places: Rows) -> Times:
        draws = slice(0, 1 if balanced[places].all() else DRAWS)
        few_tokens = constants.vector_rows if isinstance(constants, CoreMoeConstants) else 0
        work = ExpertWork(
            routed=counts.routed[places, draws],
            active=counts.active[places, draws],
            row_tiles={number: tiles[places, draws] for number, tiles in counts.row_tiles.items()},
            n_slots=slots[places],
            own_tokens=tokens[places],
            call_tokens=tokens[places],
            touched=counts.touched[places, None],
            few=counts.few[few_tokens][places, draws],
            few_routed=counts.few_routed[few_tokens][places, draws],
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
