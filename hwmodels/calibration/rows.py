"""What calibrations of all families share: names of data types, rows left out, numbers of shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodels.devices import Device
from hwmodels.validation.timings import Timings

DTYPES = {
    "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "fp8": "fp8", "fp8_block": "fp8_block",
    "nvfp4": "nvfp4", "w4a16_mxfp4": "mxfp4", "int4_wo": "int4",
}  # fmt: skip
"""Names of data types in the tables, and ours."""

Reasons = NDArray[np.str_]
"""Why each row of a table is left out; "" where it is predicted."""


def no_reasons(timings: Timings) -> Reasons:
    """A reason for no row yet."""
    return np.full(len(timings), "", dtype="U100")


def leave_unknown_dtypes(names: NDArray[np.str_], device: Device, reasons: Reasons) -> None:
    """Leave out rows of data types that we or the device do not have; in place."""
    for name in np.unique(names).tolist():
        ours = DTYPES.get(name)
        if ours is None or not device.multiplies(ours):
            reasons[names == name] = f"data type {name}: not modelled on {device.card.name}"


def number_shapes(timings: Timings, names: tuple[str, ...]) -> NDArray[np.int64]:
    """int64[row]: equal where the named columns are equal, numbered in ascending order of their values."""
    table = np.stack([timings.ints(name) for name in names], axis=1)
    return np.unique(table, axis=0, return_inverse=True)[1].ravel()


def rotates(timings: Timings) -> NDArray[np.bool_]:
    """Whether weights rotate beyond the last cache, as `moesim capture` has them: bool[row]."""
    if "weights" not in timings.columns:
        return np.zeros(len(timings), dtype=bool)
    rotating: NDArray[np.bool_] = timings.texts("weights") == "rotating"
    return rotating


def leave_repeated(timings: Timings, reasons: Reasons) -> None:
    """Leave out rows that were measured with the same weights in every call on purpose; in place."""
    if "weights" in timings.columns:
        reasons[timings.texts("weights") == "repeated"] = "weights repeated on purpose: read from the cache"
