"""Tables of dense GEMM as calibration problems."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration import cores
from hwmodels.calibration.cores import has_cores
from hwmodels.calibration.fit import Parameter, Rows, Times
from hwmodels.calibration.problem import Problem
from hwmodels.calibration.rows import (
    DTYPES,
    Reasons,
    leave_repeated,
    leave_unknown_dtypes,
    number_shapes,
    rotates,
)
from hwmodels.constants import GemmConstants
from hwmodels.core_constants import CoreGemmConstants
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.gemm import product_s
from hwmodels.validation.timings import Timings
from scenarios.models import BYTES_PER_VALUE

SHAPE = ("n", "k")
LARGE_CACHE_BYTES = 100e6

PARAMETERS = (
    Parameter(name="fixed_s", start=2.6e-6, low=1e-7, high=1e-4),
    Parameter(name="split_s", start=3e-6, low=1e-7, high=3e-4),
    Parameter(name="load_bytes_per_flop", start=0.022, low=0.002, high=0.2),
    Parameter(name="store_values_per_flop", start=0.005, low=0.0005, high=0.1),
    Parameter(name="memory_frac", start=0.8, low=0.3, high=1.0),
    Parameter(name="compute_frac", start=0.95, low=0.2, high=1.3),
)
QUANTISE = Parameter(name="quantise_frac", start=0.3, low=0.02, high=3.0)


def gemm_problems(timings: Timings, device: Device, reasons: Reasons) -> list[Problem]:
    """A problem for each data type of a table of dense GEMM; writes into `reasons` why rows are left out."""
    names, problems = timings.texts("gemm_dtype"), []
    reasons[_cached(timings, names, device)] = "weights fit into the L2 cache, repeated launches read them from there"
    leave_repeated(timings, reasons)
    leave_unknown_dtypes(names, device, reasons)
    for name in np.unique(names[reasons == ""]).tolist():
        rows = np.flatnonzero((names == name) & (reasons == ""))
        problems.append(_problem(timings.rows(rows), rows, DTYPES[name], device))
    return problems


def _cached(timings: Timings, names: NDArray[np.str_], device: Device) -> NDArray[np.bool_]:
    """Whether the weights of a row stay in a cache that is much faster than memory: bool[row].

    So on the RTX PRO 6000, whose rows of less than 128 MB exceed the bandwidth of its memory; the caches of A100 and
    Hopper are hardly faster than theirs, and their rows show no difference.
    """
    l2_bytes = device.card.l2_bytes.value if device.card.l2_bytes is not None else 0.0
    weights = timings.ints("n") * timings.ints("k")
    width = np.array([BYTES_PER_VALUE.get(DTYPES.get(name, ""), 2.0) for name in names.tolist()])
    resident: NDArray[np.bool_] = (weights * width <= l2_bytes) & (l2_bytes >= LARGE_CACHE_BYTES) & ~rotates(timings)
    return resident


def _problem(timings: Timings, rows: Rows, dtype: str, device: Device) -> Problem:
    m, n, k = (timings.ints(name) for name in ("m", "n", "k"))

    def seconds(constants: Fitted, places: Rows) -> Times:
        return product_s(m[places], n[places], k[places], dtype, device, constants)  # type: ignore[arg-type]

    on_cores = has_cores(device)
    tiled = PARAMETERS + ((QUANTISE,) if dtype != "bf16" else ())
    return Problem(
        block="gemm",
        dtype=dtype,
        rows=rows,
        measured_s=timings.measured_s,
        shapes=number_shapes(timings, SHAPE),
        kinds=np.full(len(rows), "", dtype="U1"),
        fitting=np.ones(len(rows), dtype=bool),
        law=seconds,
        parameters=cores.GEMM if on_cores else tiled,
        constants=CoreGemmConstants if on_cores else GemmConstants,
        options=cores.VECTOR_ROWS if on_cores else ({"law": "tiles"},),
    )
