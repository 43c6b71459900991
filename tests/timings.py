"""Tables of timings made of a law: what a fit is to find again is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from hwmodels.calibration.calibrate import problems_of
from hwmodels.devices import Device
from hwmodels.validation.timings import FAMILIES, Timings

# Shapes of models: (hidden, intermediate, top-k, experts), (n, k), (heads, KV heads, head_dim).
EXPERTS = ((4096, 1536, 8, 128), (2048, 768, 8, 128), (4096, 14336, 2, 8), (2048, 1408, 6, 64), (7168, 2048, 8, 64))
PRODUCTS = ((4096, 4096), (1024, 8192), (14336, 4096), (256, 7168), (6144, 2048), (2880, 2880))
HEADS = ((32, 8, 128), (16, 2, 128), (8, 8, 256), (64, 8, 64), (24, 3, 64), (40, 8, 256))


def timings(rows: Iterable[Mapping[str, Any]], name: str = "made.csv") -> Timings:
    """A table of rows with any `latency` [ms], else 1 us, and `kernel_source`."""
    listed = list(rows)
    columns = {key: np.array([row[key] for row in listed]) for key in listed[0]}
    family = next(family for family, needed in FAMILIES.items() if set(needed) <= columns.keys())
    measured_s = np.array([row.get("latency", 1e-3) for row in listed]) * 1e-3
    source = np.array([row.get("kernel_source", "toy") for row in listed])
    return Timings(path=Path(name), family=family, columns=columns, measured_s=measured_s, source=source)


def with_times(table: Timings, device: Device) -> Timings:
    """The table with the times that the laws of `device` predict. Every row must be predicted."""
    problems, reasons = problems_of(table, device)
    assert not reasons.any(), np.unique(reasons)
    measured_s = np.full(len(table), np.nan)
    for problem in problems:
        constants = device.kernels.find(problem.block, problem.dtype)
        measured_s[problem.rows] = problem.law(constants, np.arange(len(problem.rows)))
    return replace(table, measured_s=measured_s)


def moe_rows(**fields: Any) -> list[dict[str, Any]]:
    """Five models on one rank, whole and shared by four, with balanced tokens."""
    usual = {"moe_dtype": "bfloat16", "moe_ep_size": 1, "distribution": "balanced", "kernel_source": "toy"}
    names = ("hidden_size", "inter_size", "topk", "num_experts")
    return [
        usual | dict(zip(names, shape, strict=True)) | {"moe_tp_size": tp, "num_tokens": tokens} | fields
        for shape, tp, tokens in product(EXPERTS, (1, 4), (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192))
    ]


def gemm_rows(**fields: Any) -> list[dict[str, Any]]:
    """Products of 1 to 16,384 rows with six weights."""
    usual = {"gemm_dtype": "bfloat16", "kernel_source": "toy"}
    rows = (1, 3, 16, 64, 100, 128, 192, 256, 512, 1000, 2048, 4096, 16384)
    return [usual | {"m": m, "n": n, "k": k} | fields for (n, k), m in product(PRODUCTS, rows)]


def attention_rows(**fields: Any) -> list[dict[str, Any]]:
    """Decode and prefill of six head configurations."""
    usual = {"kv_cache_dtype": "bfloat16", "window_size": 0, "kernel_source": "toy"}
    names = ("num_heads", "num_key_value_heads", "head_dim")
    decode = product((1, 4, 16, 64, 256), (1,), (127, 511, 2047, 8191))
    prefill = product((1, 2, 8), (16, 128, 512, 1024, 4096), (0,))
    return [
        usual | dict(zip(names, heads, strict=True)) | {"batch_size": batch, "isl": length, "step": step} | fields
        for heads, (batch, length, step) in product(HEADS, (*decode, *prefill))
    ]


def mla_rows(**fields: Any) -> list[dict[str, Any]]:
    """Decode and prefill of five head counts of DeepSeek-V3."""
    usual = {"mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "kernel_source": "default"}
    decode = product((1, 4, 16, 64, 256), (1,), (127, 511, 2047, 8191))
    prefill = product((1, 2, 8), (16, 128, 512, 1024, 4096), (0,))
    return [
        usual | {"num_heads": heads, "batch_size": batch, "isl": length, "step": step} | fields
        for heads, (batch, length, step) in product((8, 16, 32, 64, 128), (*decode, *prefill))
    ]
