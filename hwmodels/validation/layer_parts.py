"""Parts of a layer of Qwen3-30B-A3B as vLLM 0.19 ran them on an RTX PRO 6000, by the card of another version.

Profile of LLMServingSim (commit 5daddb2, MIT): device times of the kernels of one layer, called again and again. Norms
and rotary kernels are not judged here: the floor of small kernels was fitted on them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodels.attention import attention_decode_s, attention_prefill_s
from hwmodels.calibration.fit import Times
from hwmodels.devices import Device
from hwmodels.gemm import gemm_s, head_s
from hwmodels.library import find_device, find_kernels
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from hwmodels.validation.beside import beside
from hwmodels.validation.columns import Column
from hwmodels.validation.score import Score, score
from hwmodels.validation.timings import read_columns
from scenarios.catalog import find_model
from scenarios.errors import HardwareError
from scenarios.models import ModelCard

FOLDER = "llmservingsim/RTXPRO6000_Qwen3-30B-A3B"
TABLE = "RTX PRO 6000 profile, vLLM 0.19"
DEVICE, KERNELS, MODEL = "rtx-pro-6000", "rtx-pro-6000-vllm", "qwen3-30b-a3b"
FEW_TOKENS = 256  # up to here the weights of a projection, not its products, are what takes time
Ints = NDArray[np.int64]


def find_profile(folder: Path) -> Path | None:
    """The folder of the profile below or beside a folder of tables, or None."""
    return beside(folder, FOLDER)


def layer_part_scores(profile: Path) -> list[Score]:
    """Errors of projections, head, experts and attention. Raises HardwareError where a file is missing or malformed."""
    model, device = find_model(MODEL, Path()), Device(card=find_device(DEVICE), kernels=find_kernels(KERNELS))
    return [
        *_projections(profile, model, device),
        _head(profile, model, device),
        *_experts(profile, model, device),
        *_attention(profile, model, device),
    ]


def even_counts(tokens: Ints, active: Ints, top_k: int, n_experts: int) -> Ints:
    """Tokens of each expert where the choices of all tokens are spread evenly over the active ones: int64[row, expert].

    The profile states tokens and active experts only.
    """
    base, rest = np.divmod(tokens * top_k, active)
    place = np.arange(n_experts)[None, :]
    counts = base[:, None] + (place < rest[:, None])
    return np.where(place < active[:, None], counts, 0)


def _projections(profile: Path, model: ModelCard, device: Device) -> list[Score]:
    """Query-key-value and output projection, few and many tokens apart."""
    columns = read_columns(profile / "dense.csv")
    attention, hidden = model.attention, model.hidden_size
    if attention.kind != "gqa":
        raise HardwareError(f"{profile}: the profile is of grouped-query attention, {model.name} has {attention.kind}")
    width = attention.n_heads * attention.head_dim
    wide = (attention.n_heads + 2 * attention.n_kv_heads) * attention.head_dim
    tokens, measured_s = _ints(columns, "tokens"), _seconds(columns)
    predicted_s = np.full(len(tokens), np.nan)
    for layer, n, k in (("qkv_proj", wide, hidden), ("o_proj", hidden, width)):
        rows = columns["layer"] == layer
        predicted_s[rows] = gemm_s(tokens[rows], n, k, model.weight_dtype, device)
    known = np.isfinite(predicted_s)
    few, many = known & (tokens <= FEW_TOKENS), known & (tokens > FEW_TOKENS)
    return [
        _score(f"projections to {FEW_TOKENS} tokens", device, predicted_s[few], measured_s[few]),
        _score(f"projections above {FEW_TOKENS} tokens", device, predicted_s[many], measured_s[many]),
    ]


def _head(profile: Path, model: ModelCard, device: Device) -> Score:
    columns = read_columns(profile / "per_sequence.csv")
    rows = columns["layer"] == "lm_head"
    sequences = _ints(columns, "sequences")[rows]
    predicted_s = head_s(sequences, model.hidden_size, model.vocab_size, 1, model.activation_dtype, device)
    return _score("head", device, predicted_s, _seconds(columns)[rows])


def _experts(profile: Path, model: ModelCard, device: Device) -> list[Score]:
    """Fused experts whose weights exceed the L2 cache, and those that repeated calls read from it, apart."""
    columns = read_columns(profile / "moe.csv")
    tokens, active, measured_s = _ints(columns, "tokens"), _ints(columns, "activated_experts"), _seconds(columns)
    shape = expert_shape(model)
    counts = even_counts(tokens, active, model.top_k, model.n_experts)
    predicted_s = grouped_gemm_moe_s(counts, shape, device, own_tokens=tokens, call_tokens=tokens)
    l2_bytes = device.card.l2_bytes.value if device.card.l2_bytes is not None else 0
    streamed = active * shape.weight_bytes > l2_bytes
    return [
        _score("experts from memory", device, predicted_s[streamed], measured_s[streamed]),
        _score("experts from L2", device, predicted_s[~streamed], measured_s[~streamed]),
    ]


def _attention(profile: Path, model: ModelCard, device: Device) -> list[Score]:
    """Decode batches, whole prompts, and chunks of a prompt with a past; mixed batches are left out."""
    columns = read_columns(profile / "attention.csv.gz")
    chunk, past, requests, context = (
        _ints(columns, name) for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    )
    measured_s = _seconds(columns)
    common = (model.attention, 1, model.kv_dtype, device)
    decode = (chunk == 0) & (requests > 0)
    whole, later = (chunk > 0) & (requests == 0) & (past == 0), (chunk > 0) & (requests == 0) & (past > 0)
    pairs = chunk * past + chunk * (chunk + 1) // 2
    decode_s = attention_decode_s(requests[decode], (requests * context)[decode], *common)
    return [
        _score("decode attention", device, decode_s, measured_s[decode]),
        _score(
            "prefill attention", device, attention_prefill_s(chunk[whole], pairs[whole], *common), measured_s[whole]
        ),
        _score("chunk attention", device, attention_prefill_s(chunk[later], pairs[later], *common), measured_s[later]),
    ]


def _score(name: str, device: Device, predicted_s: Times, measured_s: Times) -> Score:
    return score(name, "card", ("", TABLE, device.card.name, device.kernels.name), predicted_s, measured_s)


def _ints(columns: dict[str, Column], name: str) -> Ints:
    if name not in columns:
        raise HardwareError(f"the profile lacks column {name}")
    return columns[name].astype(np.int64)


def _seconds(columns: dict[str, Column]) -> Times:
    if "time_us" not in columns:
        raise HardwareError("the profile lacks column time_us")
    return columns["time_us"].astype(np.float64) * 1e-6
