"""Predicted time of every row of a timing table, and the rows that the model does not claim to predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.attention import assumed_constants
from hwmodels.devices import Device
from hwmodels.gemm import gemm_s
from hwmodels.moe import ExpertShape, grouped_gemm_moe_s
from hwmodels.validation.attention_rows import attention_rows
from hwmodels.validation.counts import expert_counts, is_known
from hwmodels.validation.timings import Timings
from scenarios.models import BYTES_PER_VALUE

DTYPES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4",
    "w4a16_mxfp4": "mxfp4", "int4_wo": "int4",
}  # fmt: skip
"""Names of data types in the tables, and ours."""

# Measured without a gate matrix by TensorRT-LLM and vLLM 0.24, with one by older collectors: (hidden, intermediate).
UNGATED_SHAPES = {(1024, 2688), (2048, 5120), (2688, 1856), (4096, 2688), (8192, 5120)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """float64[row] seconds, nan where nothing is claimed; `left_out` counts those rows by reason."""

    seconds: NDArray[np.float64]
    group: NDArray[np.str_]
    left_out: dict[str, int]


def predict(timings: Timings, device: Device) -> Predicted:
    """Predictions for a table on a device; `group` names what is scored together: data type and kernel source."""
    seconds = np.full(len(timings), np.nan)
    reasons = np.full(len(timings), "", dtype="U80")
    PREDICTORS[timings.family](timings, device, seconds, reasons)
    names, counts = np.unique(reasons[reasons != ""], return_counts=True)
    return Predicted(
        seconds=seconds,
        group=_groups(timings),
        left_out=dict(zip(names.tolist(), counts.tolist(), strict=True)),
    )


def _groups(timings: Timings) -> NDArray[np.str_]:
    if timings.family in ("attention", "mla"):
        decode = timings.ints("isl") == 1
        kind = np.where(decode, "decode", "prefill")
        return np.array([f"{k} {d}" for k, d in zip(kind, timings.texts("kv_cache_dtype"), strict=True)])
    dtype = timings.texts("moe_dtype" if timings.family == "moe" else "gemm_dtype")
    if timings.family == "gemm":
        return dtype
    kind = np.where(timings.texts("distribution") == "balanced", "balanced", "skewed")
    return np.array([f"{d} {k}" for d, k in zip(dtype, kind, strict=True)])


def _moe(timings: Timings, device: Device, seconds: NDArray[np.float64], reasons: NDArray[np.str_]) -> None:
    hidden, inter = timings.ints("hidden_size"), timings.ints("inter_size")
    n_tokens, ep = timings.ints("num_tokens"), timings.ints("moe_ep_size")
    distribution = timings.texts("distribution")
    ungated = np.array([shape in UNGATED_SHAPES for shape in zip(hidden.tolist(), inter.tolist(), strict=True)], bool)
    reasons[ungated] = "shape whose gate differs between collectors"
    reasons[ep > 1] = "expert parallel: means another thing in every framework"
    reasons[~np.array([is_known(name) for name in distribution], bool)] = "distribution that cannot be rebuilt"
    _leave_unknown_dtypes(timings.texts("moe_dtype"), device, reasons)
    l2_bytes = device.card.l2_bytes.value if device.card.l2_bytes is not None else 0.0
    columns = ("moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "distribution")
    for key, rows in _same(timings, columns, reasons == ""):
        dtype = DTYPES[str(key[0])]
        shape = ExpertShape(
            hidden_size=_int(key[1]),
            intermediate_size=_int(key[2]) // _int(key[5]),
            gated=True,
            weight_dtype=dtype,
            activation_dtype="bf16",
        )
        weight_bytes = sum(n * k for n, k in shape.gemm_sizes) * BYTES_PER_VALUE[dtype]
        for row in rows:
            counts = expert_counts(str(key[6]), int(n_tokens[row]), _int(key[3]), _int(key[4]), 1)
            if (counts > 0).sum(axis=1).mean() * weight_bytes <= l2_bytes:
                reasons[row] = "active weights fit into the L2 cache, repeated launches read them from there"
                continue
            seconds[row] = grouped_gemm_moe_s(counts, shape, device, n_tokens[row]).mean()


def _gemm(timings: Timings, device: Device, seconds: NDArray[np.float64], reasons: NDArray[np.str_]) -> None:
    _leave_unknown_dtypes(timings.texts("gemm_dtype"), device, reasons)
    m = timings.ints("m")
    for (dtype, n, k), rows in _same(timings, ("gemm_dtype", "n", "k"), reasons == ""):
        seconds[rows] = gemm_s(m[rows], _int(n), _int(k), DTYPES[str(dtype)], device)


def _attention(timings: Timings, device: Device, seconds: NDArray[np.float64], reasons: NDArray[np.str_]) -> None:
    names = timings.texts("kv_cache_dtype")
    _leave_unknown_dtypes(names, device, reasons)
    rows, constants = attention_rows(timings), assumed_constants(device)
    reasons[reasons == ""] = rows.left_out[reasons == ""]
    for name in np.unique(names[reasons == ""]).tolist():
        for decode in (False, True):
            places = np.flatnonzero((reasons == "") & (names == name) & (rows.decode == decode))
            seconds[places] = rows.seconds(places, DTYPES[name], device, constants.block(rows.latent, decode))


def _leave_unknown_dtypes(names: NDArray[np.str_], device: Device, reasons: NDArray[np.str_]) -> None:
    for name in np.unique(names).tolist():
        ours = DTYPES.get(name)
        if ours is None or not device.multiplies(ours):
            reasons[names == name] = f"data type {name}: not modelled on {device.card.name}"


def _same(
    timings: Timings, names: tuple[str, ...], chosen: NDArray[np.bool_]
) -> Iterator[tuple[tuple[object, ...], NDArray[np.int64]]]:
    """The chosen rows by equal values of the named columns: (values, row numbers)."""
    rows = np.flatnonzero(chosen)
    keys = list(zip(*(timings.columns[name][rows].tolist() for name in names), strict=True))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([numbers[key] for key in keys], np.int64)
    for key, number in numbers.items():
        yield key, rows[group == number]


def _int(value: object) -> int:
    return int(str(value))


PREDICTORS: dict[str, Callable[[Timings, Device, NDArray[np.float64], NDArray[np.str_]], None]] = {
    "moe": _moe,
    "attention": _attention,
    "mla": _attention,
    "gemm": _gemm,
}
