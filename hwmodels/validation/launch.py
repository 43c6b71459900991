"""Small kernels and launch floors against measured tables: single kernels, a chain of them, eager calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Constants, Parameter, Times, cross_fit
from hwmodels.launch import LaunchConstants, eager_s, norm_bytes, small_kernels_s
from hwmodels.library import find_device, find_kernels
from hwmodels.validation.columns import Column
from hwmodels.validation.held_out import leave_one_out_s, small_score
from hwmodels.validation.score import Part, Score
from hwmodels.validation.tables import Table
from hwmodels.validation.timings import read_columns

PROFILE_TABLE = "llmservingsim/RTXPRO6000_Qwen3-30B-A3B/dense.csv"
GATE_TABLE = "llmservingsim/v0_layers/H100_Mixtral-8x7B-v0.1_tp1.parquet"
EAGER_TABLES = {
    "h200-vllm": Table(system="h200_sxm", family="comm", engine="vllm", version="0.24.0", table="custom_allreduce"),
    "h200-sglang": Table(system="h200_sxm", family="comm", engine="sglang", version="0.5.14", table="custom_allreduce"),
}
FLOOR = Parameter(name="kernel_s", start=2e-6, low=1e-7, high=1e-4)
SMALL = (FLOOR, Parameter(name="small_memory_frac", start=1.0, low=0.05, high=20.0))
EAGER = (Parameter(name="eager_kernel_s", start=1e-5, low=1e-6, high=1e-3),)
Law = Callable[..., Times]

HIDDEN, HEAD_VALUES = 2048, (32 + 4) * 128  # Qwen3-30B-A3B: query and key heads
SMALL_OPS = {  # bytes per token, bf16
    "layernorm": float(norm_bytes(1, HIDDEN)),
    "final_layernorm": float(norm_bytes(1, HIDDEN)),
    "qk_norm": 4.0 * HEAD_VALUES,
    "rotary_emb": 4.0 * HEAD_VALUES + 256,
}
# Kernels between the marks of "gate" in LLMServingSim's mixtral.py (commit 9e3f0ec), counted by us: linear, softmax,
# top-k 2, sum, divide, cast, zeros, one-hot 2, sum, compare, nonzero 4. A token moves 2h values: read, and zeros.
GATE_KERNELS, GATE_BYTES = 16, 2 * 4096 * 2.0
HOST_BOUND_VALUES = 32_768  # values of an all-reduce up to which its device time is far below the time of a launch


def small_law(moved_bytes: Times, n_kernels: int, memory_bytes_per_s: float, base: LaunchConstants) -> Law:
    """Predicted time of given rows of small kernels under `kernel_s` and `small_memory_frac`."""

    def law(constants: Constants, places: NDArray[np.int64]) -> Times:
        return small_kernels_s(moved_bytes[places], memory_bytes_per_s, base.model_copy(update=constants), n_kernels)

    return law


def read_profile(data: Path) -> tuple[NDArray[np.int64], Times, Times]:
    """Operation (number in SMALL_OPS), bytes moved and device time [s] of the small kernels of the vLLM profile."""
    columns = read_columns(data / PROFILE_TABLE)
    names = list(SMALL_OPS)
    chosen = np.isin(columns["layer"], names)
    op = np.array([names.index(name) for name in columns["layer"][chosen].tolist()])
    moved = columns["tokens"][chosen].astype(np.float64) * np.array(list(SMALL_OPS.values()))[op]
    return op, moved, columns["time_us"][chosen].astype(np.float64) * 1e-6


def validate_small_kernels(data: Path) -> tuple[Score, ...]:
    """Norms and rotary embedding, all and up to 64 tokens: shipped constants, and without the judged operation."""
    card = "rtx-pro-6000-vllm"
    constants, device = find_kernels(card).launch(), find_device("rtx-pro-6000")
    op, moved, measured_s = read_profile(data)
    law = small_law(moved, 1, device.memory_bytes_per_s.value, constants)
    fitted_s = law(_shipped(constants), np.arange(len(op)))
    left_out_s = cross_fit(law, measured_s, SMALL, op).held_out_s
    few = moved / np.array(list(SMALL_OPS.values()))[op] <= 64
    scores = []
    parts: tuple[tuple[Part, Times], ...] = (("card", fitted_s), ("unseen shapes", left_out_s))
    for part, predicted_s in parts:
        for which, rows in (("", np.full(len(op), True)), (", <= 64 tokens", few)):
            what = (f"small kernels{which}", part, Path(PROFILE_TABLE).name, card)
            scores.append(small_score(what, predicted_s[rows], measured_s[rows], constants))
    return tuple(scores)


def validate_gate(data: Path) -> tuple[Score, ...]:
    """Gate of eager Mixtral on H100, a chain of small kernels: assumed constants, and constants of other lengths."""
    card = "datasheet-only"
    constants, device = find_kernels(card).launch(), find_device("h100-sxm")
    columns = read_columns(data / GATE_TABLE)
    chosen = columns["layer_name"].astype(np.str_) == "gate"
    tokens = columns["input"][chosen].astype(np.int64)
    measured_s = columns["latency(ns)"][chosen].astype(np.float64) * 1e-9
    law = small_law(tokens * GATE_BYTES, GATE_KERNELS, device.memory_bytes_per_s.value, constants)
    assumed_s = law(_shipped(constants), np.arange(len(tokens)))
    left_out_s = cross_fit(law, measured_s, SMALL, tokens).held_out_s
    table = Path(GATE_TABLE).name
    return (
        small_score(("eager gate", "transfer", table, card), assumed_s, measured_s, None),
        small_score(("eager gate", "unseen shapes", table, card), left_out_s, measured_s, None),
    )


def read_eager(table: Path, engine: str) -> tuple[Times, Times]:
    """Device time (replayed as a graph) and time in eager mode [s] of small all-reduces of one engine."""
    columns = read_columns(table)
    times: dict[tuple[str, int, int], float] = {}
    for backend, n_gpus, size, latency_ms in zip(*map(_values(columns), EAGER_COLUMNS), strict=True):
        times[backend, int(n_gpus), int(size)] = float(latency_ms) * 1e-3
    keys = sorted(key[1:] for key in times if key[0] == f"{engine}_eager" and key[2] <= HOST_BOUND_VALUES)
    device_s = np.array([times[f"{engine}_graph", *key] for key in keys])
    return device_s, np.array([times[f"{engine}_eager", *key] for key in keys])


EAGER_COLUMNS = ("backend", "num_gpus", "message_size", "latency")


def _values(columns: dict[str, Column]) -> Callable[[str], list[str]]:
    return lambda name: columns[name].tolist()


def validate_eager(folder: Path) -> tuple[Score, ...]:
    """Eager all-reduces that the host's launch bounds: shipped constants, and constants without the judged row."""
    scores = []
    for card, table in EAGER_TABLES.items():
        path = table.find(folder)
        if path is None:
            continue
        device_s, measured_s = read_eager(path, table.engine)
        constants = find_kernels(card).launch()

        def law(
            fitted: Constants,
            places: NDArray[np.int64],
            device_s: Times = device_s,
            base: LaunchConstants = constants,
        ) -> Times:
            return eager_s(device_s[places], 1, base.model_copy(update=fitted))

        carded_s = law({}, np.arange(len(measured_s)))
        left_out_s = leave_one_out_s(law, measured_s, EAGER)
        scores.append(small_score(("eager all-reduce", "card", table.name, card), carded_s, measured_s, constants))
        what: tuple[str, Part, str, str] = ("eager all-reduce", "unseen rows", table.name, card)
        scores.append(small_score(what, left_out_s, measured_s, constants))
    return tuple(scores)


def _shipped(constants: LaunchConstants) -> dict[str, float]:
    return {parameter.name: getattr(constants, parameter.name) for parameter in SMALL}
