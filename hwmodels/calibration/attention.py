"""Attention tables as calibration problems: one for each phase, data type of the cache and kernel of an engine."""

from __future__ import annotations

import numpy as np

from hwmodels.calibration import cores
from hwmodels.calibration.attention_rows import AttentionRows, attention_rows
from hwmodels.calibration.cores import has_cores
from hwmodels.calibration.fit import Parameter, Rows, Times
from hwmodels.calibration.problem import Problem
from hwmodels.calibration.rows import DTYPES, Reasons, leave_unknown_dtypes
from hwmodels.constants import DecodeConstants, MlaDecodeConstants, MlaPrefillConstants, PrefillConstants
from hwmodels.core_constants import CoreDecodeConstants, CorePrefillConstants
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.validation.timings import Timings

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

LAWS = {"decode": "split-kv", "prefill": "tiles", "mla_decode": "split-kv", "mla_prefill": "tiles"}
BLOCKS: dict[str, tuple[type[Fitted], tuple[Parameter, ...]]] = {
    "decode": (DecodeConstants, DECODE),
    "prefill": (PrefillConstants, PREFILL),
    "mla_decode": (MlaDecodeConstants, MLA_DECODE),
    "mla_prefill": (MlaPrefillConstants, PREFILL),
}


CORE_BLOCKS: dict[str, tuple[type[Fitted], tuple[Parameter, ...]]] = {
    "decode": (CoreDecodeConstants, cores.DECODE),
    "prefill": (CorePrefillConstants, cores.PREFILL),
}
"""Of GQA on a CPU; nobody has measured MLA there."""


def attention_problems(timings: Timings, device: Device, reasons: Reasons) -> list[Problem]:
    """A problem for each phase, kernel source, and data type of cache and queries; writes into `reasons`.

    Shapes are head configurations: (heads, KV heads, head_dim), whatever the window; of MLA the number of heads.
    """
    rows = attention_rows(timings)
    reasons[rows.left_out != ""] = rows.left_out[rows.left_out != ""]
    kv_names = timings.texts("kv_cache_dtype")
    leave_unknown_dtypes(kv_names, device, reasons)
    query_name = "mla_dtype" if rows.latent else "attn_dtype"
    query_names = timings.texts(query_name) if query_name in timings.columns else kv_names
    keys = np.stack([rows.decode.astype(np.str_), kv_names, query_names, timings.source], axis=1)
    problems = []
    for key in np.unique(keys[reasons == ""], axis=0):
        places = np.flatnonzero((reasons == "") & (keys == key).all(axis=1))
        problems.append(_problem(timings, rows, places, device))
    return problems


def _problem(timings: Timings, rows: AttentionRows, places: Rows, device: Device) -> Problem:
    source = str(timings.source[places[0]])
    name = ("mla_" if rows.latent else "") + ("decode" if rows.decode[places[0]] else "prefill")
    dtype = DTYPES[str(timings.texts("kv_cache_dtype")[places[0]])]
    on_cores = has_cores(device) and name in CORE_BLOCKS
    block, parameters = (CORE_BLOCKS if on_cores else BLOCKS)[name]
    if source in PADS:
        parameters = (*parameters, PAD)
    if source in CASTS and name == "mla_decode" and dtype != "bf16":
        parameters = (*parameters, CAST)
    windowed = np.isfinite(rows.window[places])
    options = {"law": "cores" if on_cores else LAWS[name]} | OPTIONS.get((source, name), {})
    if not windowed.any():
        parameters = tuple(parameter for parameter in parameters if parameter.name != "mask_s")
        options |= {"mask_s": 0.0} if "mask_s" in block.model_fields else {}
    own = rows.only(places)
    heads = np.stack([own.heads, own.kv_heads, own.head_dim], axis=1)

    def seconds(constants: Fitted, chosen: Rows) -> Times:
        return own.seconds(chosen, dtype, device, constants)

    return Problem(
        block=name,
        dtype=dtype,
        rows=places,
        measured_s=timings.measured_s[places],
        shapes=np.unique(heads, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64),
        kinds=np.full(len(places), "", dtype="U1"),
        fitting=np.ones(len(places), dtype=np.bool_),
        law=seconds,
        parameters=parameters,
        constants=block,
        options=(options,),
    )
