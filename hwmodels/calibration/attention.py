"""Attention tables as calibration problems: one for each phase, data type of the cache and kernel of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodels.calibration.fit import Constants, Law, Parameter, Times, cross_fit, residuals_of
from hwmodels.calibration.problem import Problem
from hwmodels.devices import Device
from hwmodels.fitted import Fitted, Residuals
from hwmodels.gqa import DecodeConstants, PrefillConstants
from hwmodels.mla import MlaDecodeConstants, MlaPrefillConstants
from hwmodels.validation.attention_rows import AttentionRows, attention_rows
from hwmodels.validation.predict import DTYPES
from hwmodels.validation.timings import Timings

MIN_ROWS = 200
UNSPLIT = 1_000_000  # tiles: more than any context has

DECODE = (
    Parameter(name="fixed_s", start=8e-6, low=1e-6, high=5e-5),
    Parameter(name="unit_s", start=2e-6, low=1e-8, high=3e-5),
    Parameter(name="unit_dim_s", start=5e-7, low=1e-8, high=1e-5),
    Parameter(name="memory_frac", start=0.9, low=0.05, high=1.1),
    Parameter(name="sm_memory_frac", start=1.4, low=0.05, high=10),
    Parameter(name="tile_s", start=3e-7, low=1e-9, high=1e-5),
    Parameter(name="split_s", start=2e-6, low=1e-8, high=3e-5),
    Parameter(name="request_s", start=2e-8, low=1e-10, high=1e-6),
    Parameter(name="mask_s", start=1e-6, low=1e-9, high=3e-5),
)
PREFILL = (
    Parameter(name="fixed_s", start=8e-6, low=1e-6, high=5e-5),
    Parameter(name="item_s", start=2.5e-6, low=1e-8, high=3e-5),
    Parameter(name="memory_frac", start=1.0, low=0.05, high=20),
    Parameter(name="compute_frac", start=0.8, low=0.05, high=4),
    Parameter(name="softmax_dims", start=40, low=1, high=400),
    Parameter(name="split_s", start=4e-6, low=1e-8, high=3e-5),
    Parameter(name="token_s", start=1e-9, low=1e-13, high=3e-8),
    Parameter(name="mask_s", start=1e-6, low=1e-9, high=3e-5),
)
MLA_DECODE = (
    Parameter(name="fixed_s", start=1e-5, low=1e-6, high=5e-5),
    Parameter(name="unit_s", start=3e-6, low=1e-8, high=5e-5),
    Parameter(name="unit_memory_frac", start=1.5, low=0.05, high=50),
    Parameter(name="sm_memory_frac", start=1.5, low=0.05, high=50),
    Parameter(name="compute_frac", start=0.66, low=0.05, high=3),
    Parameter(name="memory_frac", start=0.8, low=0.05, high=1.2),
    Parameter(name="split_s", start=4e-6, low=1e-8, high=5e-5),
    Parameter(name="request_s", start=1e-8, low=1e-11, high=1e-6),
)
PAD = Parameter(name="pad_s", start=1e-6, low=1e-10, high=3e-5)
CAST = Parameter(name="cast_frac", start=0.25, low=0.01, high=2)

# What is known of an engine's kernel beside times. FlashAttention-3 splits into up to 128 parts but never a context of
# up to 4 tiles (hopper/heuristics.h); vLLM caps parts at 32 in CUDA graphs and schedules at most 992 requests ahead.
OPTIONS: dict[tuple[str, str], dict[str, object]] = {
    ("vllm_flash_attn_fa3", "decode"): {"max_splits": 32, "scheduled_requests": 992},
    ("vllm_flash_attn_fa4", "decode"): {"max_splits": 32, "scheduled_requests": 992},
    ("fa3", "decode"): {"max_splits": 128, "unsplit_tiles": 4},
    ("triton", "decode"): {"max_splits": 128, "unsplit_tiles": 4},
    ("flash_attention", "mla_decode"): {"unsplit_tiles": 4},
    ("flash_attention", "mla_prefill"): {"form": "absorbed"},
    ("default", "mla_decode"): {"max_splits": 64, "unsplit_tiles": 2},
    ("default", "mla_prefill"): {"form": "expanded", "unsplit_tiles": UNSPLIT},
}
PADS = {"fa3"}  # sources with more launches at head_dim 192
CASTS = {"flash_attention"}  # sources that expand a cache of fp8 before they read it

BLOCKS: dict[str, tuple[type[Fitted], tuple[Parameter, ...]]] = {
    "decode": (DecodeConstants, DECODE),
    "prefill": (PrefillConstants, PREFILL),
    "mla_decode": (MlaDecodeConstants, MLA_DECODE),
    "mla_prefill": (MlaPrefillConstants, PREFILL),
}


def attention_problems(timings: Timings, device: Device) -> list[Problem]:
    """One problem a phase, data type of the cache, data type of queries and kernel source with at least 200 rows.

    Shapes are head configurations: (heads, KV heads, head_dim), whatever the window; of MLA the number of heads. Kinds
    are "full" and "windowed", where the window clips contexts. Rows of one kernel source have `timings.source` alike.
    """
    rows = attention_rows(timings)
    kv_names = timings.texts("kv_cache_dtype")
    query_name = "mla_dtype" if rows.latent else "attn_dtype"
    query_names = timings.texts(query_name) if query_name in timings.columns else kv_names
    claimed = (rows.left_out == "") & np.isin(kv_names, list(DTYPES))
    keys = np.stack([rows.decode.astype(np.str_), kv_names, query_names, timings.source], axis=1)
    problems = []
    for key in np.unique(keys[claimed], axis=0):
        places = np.flatnonzero(claimed & (keys == key).all(axis=1))
        if len(places) >= MIN_ROWS:
            problems.append(_problem(timings, rows, places, device))
    return problems


def judged(problem: Problem) -> tuple[Fitted, Residuals, Times]:
    """Constants fitted on all rows, their residuals over folds of shapes, and the held-out times [s] of the rows.

    The source of the constants is to be filled in by the caller.
    """
    found = cross_fit(problem.law, problem.measured_s, problem.parameters, problem.shapes)
    residuals = residuals_of(found.held_out_s, problem.measured_s)
    constants = _constants(problem.constants, problem.options, found.constants)
    stated = constants.model_copy(update={"residuals": residuals, "kind": "measured", "source": "not stated"})
    return stated, residuals, found.held_out_s


def _problem(timings: Timings, rows: AttentionRows, places: NDArray[np.int64], device: Device) -> Problem:
    source = str(timings.source[places[0]])
    name = ("mla_" if rows.latent else "") + ("decode" if rows.decode[places[0]] else "prefill")
    dtype = DTYPES[str(timings.texts("kv_cache_dtype")[places[0]])]
    block, parameters = BLOCKS[name]
    options = OPTIONS.get((source, name), {})
    if source in PADS:
        parameters = (*parameters, PAD)
    if source in CASTS and name == "mla_decode" and dtype != "bf16":
        parameters = (*parameters, CAST)
    windowed = np.isfinite(rows.window[places])
    if not windowed.any():
        parameters = tuple(parameter for parameter in parameters if parameter.name != "mask_s")
        options = options | ({"mask_s": 0.0} if "mask_s" in block.model_fields else {})
    heads = np.stack([rows.heads[places], rows.kv_heads[places], rows.head_dim[places]], axis=1)
    return Problem(
        block=name,
        dtype=dtype,
        rows=places,
        measured_s=timings.measured_s[places],
        shapes=np.unique(heads, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64),
        kinds=np.where(windowed, "windowed", "full"),
        fitting=np.ones(len(places), dtype=np.bool_),
        law=_law(_only(rows, places), dtype, device, block, options),
        parameters=parameters,
        constants=block,
        options=options,
    )


def _law(rows: AttentionRows, dtype: str, device: Device, block: type[Fitted], options: Mapping[str, object]) -> Law:
    """The kernel law over rows that are all of one kind."""

    def law(constants: Constants, places: NDArray[np.int64]) -> Times:
        return rows.seconds(places, dtype, device, _constants(block, options, constants))

    return law


def _constants(block: type[Fitted], options: Mapping[str, object], numbers: Constants) -> Fitted:
    """Constants without checks: numbers of a fit stay between their bounds."""
    fields: dict[str, Any] = {**options, **numbers}
    return block.model_construct(**fields)


def _only(rows: AttentionRows, places: NDArray[np.int64]) -> AttentionRows:
    names = [name for name in rows.__dataclass_fields__ if name != "latent"]
    return replace(rows, **{name: getattr(rows, name)[places] for name in names})
