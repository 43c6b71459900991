"""What a table of timings asks of one law: its rows, the constants to fit, and how rows are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Parameter, Rows, Times
from hwmodels.fitted import Fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One law, one data type, and the rows of a table that the law claims to predict.

    block       place of the constants in a kernel card, e.g. "moe", "gemm", "decode".
    dtype       key below it, e.g. "bf16".
    rows        int64[n]: numbers of the claimed rows in the table; the arrays below follow this order.
    measured_s  float64[n]
    shapes      int64[n]: rows of one model shape share a number; folds never split them.
    kinds       str[n]: what is scored apart, e.g. "balanced" and "skewed"; "" where all rows are alike.
    fitting     bool[n]: rows that constants are fitted on; the others only judge.
    law         (constants, places) -> seconds of those places of the n rows.
    constants   class of the block; `options` are its fields that are not fitted, such as a rule of tiles: one mapping
                for each choice that is tried.
    """

    block: str
    dtype: str
    rows: NDArray[np.int64]
    measured_s: Times
    shapes: NDArray[np.int64]
    kinds: NDArray[np.str_]
    fitting: NDArray[np.bool_]
    law: Callable[[Fitted, Rows], Times]
    parameters: tuple[Parameter, ...]
    constants: type[Fitted]
    options: tuple[Mapping[str, object], ...] = ({},)
