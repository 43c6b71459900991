"""Tables of small kernels, copies and experts on a host, as `moesim capture` writes them, as fitting problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Constants, CrossFit, Parameter, Rows, Times, cross_fit
from hwmodels.calibration.rows import DTYPES
from hwmodels.copies import CopyLaw, block_s
from hwmodels.core_constants import ChoiceConstants
from hwmodels.cores import rows_s
from hwmodels.fitted import Law
from hwmodels.launch import LaunchConstants, activation_bytes, choice_s, norm_bytes, small_kernels_s, small_norm_s
from hwmodels.validation.columns import Column
from hwmodels.validation.timings import read_columns
from scenarios.models import BYTES_PER_VALUE

CHAIN = 64  # kernels of one row of operation chain_eager, as in traces/capture/kernels/small.py
LAUNCH = (
    Parameter(name="kernel_s", start=1e-5, low=1e-7, high=1e-3),
    Parameter(name="norm_s", start=1e-5, low=1e-7, high=1e-3),
    Parameter(name="small_memory_frac", start=1.0, low=0.01, high=20),
)
CHOICE = (
    Parameter(name="fixed_s", start=1e-5, low=1e-7, high=1e-3),
    Parameter(name="row_s", start=1e-7, low=1e-11, high=1e-4),
    Parameter(name="score_s", start=1e-9, low=1e-12, high=1e-6),
)
COPY = (
    Parameter(name="block_latency_s", start=1e-6, low=1e-9, high=1e-3),
    Parameter(name="bandwidth_frac", start=0.9, low=0.05, high=2),
)
HOST = (
    Parameter(name="vector_flop_per_s", start=1.5e10, low=1e8, high=1e13),
    Parameter(name="vector_extra", start=0.5, low=0.005, high=100),
    Parameter(name="packed_flop_per_s", start=8e10, low=1e8, high=1e14),
    Parameter(name="packed_extra", start=15, low=0.05, high=500),
)
VECTOR_TOKENS = 2
"""Tokens up to which the library takes its plain vector kernel, as the law of experts on cores finds it."""

Columns = dict[str, Column]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallProblem:
    """Rows of one kind with their law; rows of one of the `shapes` share a fold."""

    name: str
    table: str
    measured_s: Times
    shapes: NDArray[np.int64]
    law: Callable[[Constants, Rows], Times]
    parameters: tuple[Parameter, ...]

    def cross_fit(self, folds: int) -> CrossFit:
        """Constants of all rows, and predictions of each fold of shapes by those of the others."""
        return cross_fit(self.law, self.measured_s, self.parameters, self.shapes, folds=folds)


def launch_problem(folder: Path, memory_bytes_per_s: float) -> SmallProblem:
    """Norm with residual sum, and activation: kernels that move bytes."""
    columns = _rows(folder / "small.csv", operation=("norm", "activation"))
    tokens, hidden, norm = _ints(columns, "tokens"), _ints(columns, "hidden_size"), _is(columns, "operation", "norm")
    width = BYTES_PER_VALUE[DTYPES[str(columns["dtype"][0])]]
    # The activation halves rows of the hidden size: its intermediate size is half of that.
    one = np.where(norm, norm_bytes(1, 1, width), activation_bytes(1, 1, True, width) / 2)
    moved = tokens * hidden * one

    def law(constants: Constants, places: Rows) -> Times:
        made = _made(LaunchConstants, constants)
        kernel_s = small_kernels_s(moved[places], memory_bytes_per_s, made)
        return np.where(norm[places], small_norm_s(moved[places], memory_bytes_per_s, made), kernel_s)

    return _problem("small kernels", "small.csv", columns, np.stack([norm, hidden]), (law, LAUNCH))


def choice_problem(folder: Path) -> SmallProblem:
    """The router's choice from the scores of all experts."""
    columns = _rows(folder / "small.csv", operation=("choice",))
    tokens, experts = _ints(columns, "tokens"), _ints(columns, "num_experts")

    def law(constants: Constants, places: Rows) -> Times:
        return choice_s(tokens[places], experts[places], _made(ChoiceConstants, constants))

    shapes = np.stack([experts, _ints(columns, "topk"), _ints(columns, "hidden_size")])
    return _problem("router's choice", "small.csv", columns, shapes, (law, CHOICE))


def copy_problem(folder: Path, link_bytes_per_s: float, host_memory: str) -> SmallProblem:
    """Copies to the device by one stream, alone."""
    columns = _rows(
        folder / "copies.csv", direction=("to-device",), host_memory=(host_memory,), streams=("1",), under=("none",)
    )
    size = _ints(columns, "bytes").astype(np.float64)

    def law(constants: Constants, places: Rows) -> Times:
        return block_s(size[places], _made(CopyLaw, constants), link_bytes_per_s)

    return _problem(f"copies to-device {host_memory}", "copies.csv", columns, size[None, :], (law, COPY))


def host_problem(folder: Path) -> SmallProblem:
    """Experts on one core of the host, alone, in float32."""
    columns = _rows(folder / "host.csv", threads=("1",), under=("none",))
    tokens, hidden, inter = (_ints(columns, name) for name in ("tokens", "hidden_size", "inter_size"))
    weights = 3.0 * hidden * inter

    def law(constants: Constants, places: Rows) -> Times:
        few = tokens[places] <= VECTOR_TOKENS
        vector_s = rows_s(tokens[places], constants["vector_extra"], weights[places], constants["vector_flop_per_s"])
        packed_s = rows_s(tokens[places], constants["packed_extra"], weights[places], constants["packed_flop_per_s"])
        return np.where(few, vector_s, packed_s)

    return _problem("experts on a host core", "host.csv", columns, np.stack([hidden, inter]), (law, HOST))


def eager_kernel_s(folder: Path) -> float:
    """Time of one small kernel in a chain of them, launched eagerly with next to nothing to do [s]."""
    columns = _rows(folder / "small.csv", operation=("chain_eager",), tokens=("1",))
    return float(np.median(columns["latency"].astype(np.float64))) * 1e-3 / CHAIN


def read_bytes_per_s(folder: Path) -> float:
    """Rate at which the device reads its memory [bytes/s]."""
    columns = _rows(folder / "copies.csv", direction=("read",))
    return float(columns["bytes"].astype(np.float64)[0] / (columns["latency"].astype(np.float64)[0] * 1e-3))


def _rows(path: Path, **wanted: tuple[str, ...]) -> Columns:
    """The rows of a table whose columns have the wanted values."""
    columns = read_columns(path)
    chosen = np.ones(len(columns["latency"]), dtype=bool)
    for name, values in wanted.items():
        chosen &= np.isin(columns[name].astype(np.str_), values)
    return {name: column[chosen] for name, column in columns.items()}


def _made(kind: type[Law], constants: Constants) -> Law:
    """Constants of a fit under way, unchecked."""
    values: dict[str, Any] = dict(constants)
    return cast(Law, kind.model_construct(**values))


def _ints(columns: Columns, name: str) -> NDArray[np.int64]:
    return columns[name].astype(np.int64)


def _is(columns: Columns, name: str, value: str) -> NDArray[np.int64]:
    found: NDArray[np.int64] = (columns[name].astype(np.str_) == value).astype(np.int64)
    return found


def _problem(
    name: str,
    table: str,
    columns: Columns,
    shapes: NDArray[np.number],
    how: tuple[Callable[[Constants, Rows], Times], tuple[Parameter, ...]],
) -> SmallProblem:
    law, parameters = how
    numbers = np.unique(shapes, axis=1, return_inverse=True)[1].ravel().astype(np.int64)
    measured_s = columns["latency"].astype(np.float64) * 1e-3
    return SmallProblem(name=name, table=table, measured_s=measured_s, shapes=numbers, law=law, parameters=parameters)
