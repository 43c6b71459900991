"""Time of kernels on the cores of a CPU: products with weights from memory, experts one after another, attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.blends import slow_start_s
from hwmodels.core_constants import (
    CoreDecodeConstants,
    CoreGemmConstants,
    CoreMoeConstants,
    CorePrefillConstants,
    CoreProduct,
)
from hwmodels.devices import Device
from scenarios.models import BYTES_PER_VALUE

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of matrices that are multiplied one after another: those of few rows, and the others.

    few, many            float[...]: matrices with up to vector_rows rows, and with more; without rows: in neither.
    few_rows, many_rows  float[...]: their rows together.
    """

    few: ArrayLike
    few_rows: ArrayLike
    many: ArrayLike
    many_rows: ArrayLike


def rows_s(rows: ArrayLike, extra_rows: ArrayLike, weights: ArrayLike, flop_per_s: float) -> Times:
    """Time of multiplying rows with matrices of `weights` values each on cores: float64[...] [s].

    rows        float[...]: rows of all matrices together.
    extra_rows  float[...]: fixed work of all matrices, in rows: reading the weights, and packing them.

    T = (rows + extra_rows) * 2 * weights / rate: affine in the rows.
    """
    every = np.asarray(rows, np.float64) + np.asarray(extra_rows, np.float64)
    return np.asarray(every * (2.0 * np.asarray(weights, np.float64) / flop_per_s))


def matrices_s(
    rows: Rows, weights: ArrayLike, runs: ArrayLike, dtype: str, device: Device, constants: CoreProduct
) -> Times:
    """Time of products whose weights come from memory, without fixed_s: float64[...] [s].

    weights  values of one matrix, stored in `runs` contiguous runs.

    T = sum over both kernels of (rows + matrices extra_rows) 2 weights / (frac peak) + matrices runs run_s
    """
    peak, few, many = device.peak_flop_per_s(dtype), np.asarray(rows.few), np.asarray(rows.many)
    few_s = rows_s(rows.few_rows, constants.vector_extra_rows * few, weights, constants.vector_frac * peak)
    many_s = rows_s(rows.many_rows, constants.packed_extra_rows * many, weights, constants.packed_frac * peak)
    return np.asarray(few_s + many_s + (few + many) * np.asarray(runs) * constants.run_s)


def product_s(
    m: ArrayLike, n: ArrayLike, k: ArrayLike, dtype: str, device: Device, constants: CoreGemmConstants
) -> Times:
    """Time of dense products [m, k] x [k, n], the weights stored as n runs of k values: float64[...] [s].

    T = fixed_s + matrices_s + m (n + k) bytes / (activation_frac BW); no rows leave fixed_s.
    Weights that fit into the last cache and are there from an earlier call take less; that is not modelled.
    """
    rows, columns, inner = (np.asarray(size, np.float64) for size in (m, n, k))
    few, any_rows = rows <= constants.vector_rows, rows > 0
    split = Rows(few=few & any_rows, few_rows=np.where(few, rows, 0), many=~few, many_rows=np.where(few, 0, rows))
    moved = rows * (columns + inner) * BYTES_PER_VALUE[dtype]
    worked_s = matrices_s(split, columns * inner, columns, dtype, device, constants)
    return np.asarray(constants.fixed_s + worked_s + moved / (constants.activation_frac * device.memory_bytes_per_s))


def experts_s(
    rows: Rows,
    hidden: ArrayLike,
    columns: tuple[ArrayLike, ArrayLike],
    dtype: str,
    device: Device,
    constants: CoreMoeConstants,
) -> Times:
    """Time of a layer's experts one after another: float64[...] [s].

    columns  those of the up product [hidden, columns], with the gate beside it where there is one, and the intermediate
             size. Its weights are stored as `hidden` runs, those of the down product as `intermediate` ones.

    T = fixed_s + experts with tokens expert_s + matrices_s of both products together
    """
    width, up_columns, inner = (np.asarray(size, np.float64) for size in (hidden, *columns))
    active = np.asarray(rows.few) + np.asarray(rows.many)
    worked_s = matrices_s(rows, width * (up_columns + inner), width + inner, dtype, device, constants)
    return np.asarray(constants.fixed_s + active * constants.expert_s + worked_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Heads of a layer as numbers or arrays over rows: float64[...]."""

    heads: Times
    kv_heads: Times
    head_dim: Times


def decode_s(
    requests: ArrayLike,
    context_tokens: ArrayLike,
    heads: Heads,
    kv_dtype: str,
    device: Device,
    constants: CoreDecodeConstants,
) -> Times:
    """Time of decode attention with the cache in memory: float64[...] [s]; context_tokens: summed over the requests.

    T = fixed_s + requests heads slow_start_s(w, start_s, start_gain), of one head of one request
    w = context dim max(1, dim / narrow_dim) (2 bytes kv heads / heads / (memory_frac BW) + 4 / (compute_frac peak))
    """
    batch, context = np.asarray(requests, np.float64), np.asarray(context_tokens, np.float64)
    read = 2 * BYTES_PER_VALUE[kv_dtype] * heads.kv_heads / heads.heads
    read_s = read / (constants.memory_frac * device.memory_bytes_per_s)
    value_s = read_s + 4 / (constants.compute_frac * device.peak_flop_per_s(kv_dtype))
    dim = heads.head_dim * np.maximum(1.0, heads.head_dim / constants.narrow_dim)
    work_s = context / np.maximum(batch, 1) * dim * value_s
    head_s = slow_start_s(work_s, constants.start_s, constants.start_gain)
    return np.asarray(constants.fixed_s + batch * heads.heads * head_s)


def prefill_s(
    query_tokens: ArrayLike,
    longest_tokens: ArrayLike,
    heads: Heads,
    kv_dtype: str,
    device: Device,
    constants: CorePrefillConstants,
) -> Times:
    """Time of prefill attention by a kernel that masks: every query meets the longest context: float64[...] [s].

    T = fixed_s + queries (2 heads + 2 kv heads) dim bytes / (memory_frac BW)
        + queries longest heads (4 dim / (compute_frac peak) + score_s)
    """
    queries = np.asarray(query_tokens, np.float64)
    values = queries * (2 * (heads.heads + heads.kv_heads)) * heads.head_dim
    moved_s = values * BYTES_PER_VALUE[kv_dtype] / (constants.memory_frac * device.memory_bytes_per_s)
    score_s = 4 * heads.head_dim / (constants.compute_frac * device.peak_flop_per_s(kv_dtype)) + constants.score_s
    return np.asarray(constants.fixed_s + moved_s + queries * np.asarray(longest_tokens) * heads.heads * score_s)
