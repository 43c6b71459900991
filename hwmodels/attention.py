"""Time of attention on one device: decode and prefill kernels, projections, for GQA and MLA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hwmodels.devices import Device
from hwmodels.gemm import BF16_BYTES, Times, gemm_s
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE, Attention, GroupedQueryAttention

KV_TILE_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeadShare:
    """What one of the `tp` devices holds and computes.

    kv_heads             heads of its cache: units of work per request in decode.
    cache_values         values that decode reads per token of context.
    decode_flop          per query and token of context, prefill_flop the same in prefill: scores and weighted sum.
    prefill_query_values values of a query and of its output, prefill_kv_values those of a key and of its value.
    """

    kv_heads: int
    cache_values: int
    decode_flop: int
    prefill_flop: int
    prefill_query_values: int
    prefill_kv_values: int


def attention_decode_s(
    requests: ArrayLike, context_tokens: ArrayLike, attention: Attention, tp: int, kv_dtype: str, device: Device
) -> Times:
    """Time of one layer's decode attention, one query token per request, on one of `tp` devices: float64[...] [s].

    requests        int[...]: requests of the device.
    context_tokens  int[...]: tokens attended to, summed over the requests (`windowed_context` clips them first).

    Split-KV: units = requests * local kv heads, tiles = ceil(mean context / 128), splits = clip(floor(SMs / units),
    1, tiles), waves = ceil(units * splits / SMs); T = attention_fixed_s + waves * attention_wave_s +
    max(cache bytes / (memory_frac * BW), flop / (attention_compute_frac * peak)).
    GQA reads the keys and values of the local heads once for all queries of a group. MLA runs absorbed: the latent and
    the rotary key are read once for all heads, with 2 * heads * (2 * kv_lora_rank + rope) FLOP per context token
    (DeepSeek-V2, arXiv 2405.04434). The cache of MLA is not split over tp.

    Median error 6 % (FlashAttention-3, head_dim 128, vLLM 0.24.0), 16 % (the same in SGLang 0.5.14) and 13 % (MLA,
    TensorRT-LLM) on H200 tables of aiconfigurator 0.12.0 with a bf16 cache, for 8.4 us, 3.4 us and 0.9 of BW.
    """
    share = _head_share(attention, tp)
    n_requests = np.asarray(requests, dtype=np.float64)
    context = np.asarray(context_tokens, dtype=np.float64)
    constants = device.constants
    units = n_requests * share.kv_heads
    tiles = np.ceil(context / np.maximum(n_requests, 1) / KV_TILE_TOKENS)
    splits = np.maximum(np.minimum(np.floor(device.n_sms / np.maximum(units, 1)), tiles), 1)
    waves = np.ceil(units * splits / device.n_sms)
    bandwidth = constants.memory_frac.value * device.memory_bytes_per_s
    read_s = context * (share.cache_values * BYTES_PER_VALUE[kv_dtype] / bandwidth)
    compute_s = context * (share.decode_flop / _flop_per_s(device))
    return constants.attention_fixed_s.value + waves * constants.attention_wave_s.value + np.maximum(read_s, compute_s)


def attention_prefill_s(
    query_tokens: ArrayLike, attended_pairs: ArrayLike, attention: Attention, tp: int, kv_dtype: str, device: Device
) -> Times:
    """Time of one layer's prefill attention, or of a chunk of it, on one of `tp` devices: float64[...] [s].

    query_tokens    int[...]: tokens of the chunk, over all its requests.
    attended_pairs  int[...]: sum over query tokens of the context each attends to, itself included: s * (s + 1) / 2
                    for a whole prompt of s tokens. Contexts are clipped by `windowed_context` first.

    T = attention_fixed_s + attention_wave_s + flop / (attention_compute_frac * peak) + bytes / (activation_memory_frac
    * BW). FLOP per pair and head: 4 * head_dim for GQA; 2 * (nope + rope + v) for MLA, which runs expanded (not
    absorbed). Bytes: queries and outputs in bf16, and keys and values once, of max(queries, pairs / queries +
    (queries - 1) / 2) tokens: exact for whole prompts and for a chunk of one request, too low for chunks of several
    requests that have a past. MLA's expanded keys and values are bf16 whatever the cache holds.

    Compute and memory add up; their maximum doubles the error. Median error 8 % (FlashAttention-3, head_dim 128, vLLM
    0.24.0), 7 % (SGLang 0.5.14), 24 % (head_dim 64) and 23 % (MLA, TensorRT-LLM) on the tables named at
    `attention_decode_s`, with 0.65 of the peak, 0.4 of BW for activations and the times given there.
    """
    share = _head_share(attention, tp)
    queries = np.asarray(query_tokens, dtype=np.float64)
    pairs = np.asarray(attended_pairs, dtype=np.float64)
    constants = device.constants
    kv_tokens = np.maximum(queries, pairs / np.maximum(queries, 1) + (queries - 1) / 2)
    kv_bytes = BYTES_PER_VALUE[kv_dtype] if isinstance(attention, GroupedQueryAttention) else BF16_BYTES
    moved = queries * (share.prefill_query_values * BF16_BYTES) + kv_tokens * (share.prefill_kv_values * kv_bytes)
    compute_s = pairs * (share.prefill_flop / _flop_per_s(device))
    memory_s = moved / (constants.activation_memory_frac.value * device.memory_bytes_per_s)
    wave_s = (queries > 0) * constants.attention_wave_s.value
    return constants.attention_fixed_s.value + wave_s + compute_s + memory_s


def attention_projections_s(
    tokens: ArrayLike, attention: Attention, hidden: int, tp: int, dtype: str, device: Device
) -> Times:
    """Time of the GEMMs around attention in one layer, on one of `tp` devices: float64[...] [s].

    GQA: query-key-value GEMM and output GEMM. MLA: down GEMM (query and cache latents together, not split over tp), up
    GEMM of the queries where they have a latent, the two batched GEMMs that absorb keys and values, output GEMM. An
    expanded prefill has one up GEMM of keys and values instead, with the same FLOP and weights.
    """
    share = _head_share(attention, tp)
    heads = attention.n_heads // tp
    if isinstance(attention, GroupedQueryAttention):
        qkv_columns = (heads + 2 * share.kv_heads) * attention.head_dim
        qkv_s = gemm_s(tokens, qkv_columns, hidden, dtype, device)
        return qkv_s + gemm_s(tokens, hidden, heads * attention.head_dim, dtype, device)
    rank, query_rank = attention.kv_lora_rank, attention.q_lora_rank
    query_columns = heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
    down_columns = (query_rank or query_columns) + rank + attention.qk_rope_head_dim
    total_s = gemm_s(tokens, down_columns, hidden, dtype, device)
    if query_rank is not None:
        total_s = total_s + gemm_s(tokens, query_columns, query_rank, dtype, device)
    total_s = total_s + gemm_s(tokens, rank, attention.qk_nope_head_dim, dtype, device, batch=heads)
    total_s = total_s + gemm_s(tokens, attention.v_head_dim, rank, dtype, device, batch=heads)
    return total_s + gemm_s(tokens, hidden, heads * attention.v_head_dim, dtype, device)


def windowed_context(context_tokens: ArrayLike, window_tokens: int | None) -> Times:
    """Context of each query under a sliding window: float64[...]; clip per query or request, before any sum."""
    context = np.asarray(context_tokens, dtype=np.float64)
    return context if window_tokens is None else np.minimum(context, window_tokens)


def _flop_per_s(device: Device) -> float:
    """FLOP rate that attention reaches; it multiplies in bf16, whatever the cache holds."""
    return device.constants.attention_compute_frac.value * device.peak_flop_per_s("bf16")


def _head_share(attention: Attention, tp: int) -> _HeadShare:
    """The share of one of `tp` devices; kv heads round up: each is repeated where devices outnumber them."""
    if tp < 1 or attention.n_heads % tp:
        raise ScenarioError(f"attention tp {tp} does not divide {attention.n_heads} heads; choose a divisor")
    heads = attention.n_heads // tp
    if isinstance(attention, GroupedQueryAttention):
        kv_heads, dim = -(-attention.n_kv_heads // tp), attention.head_dim
        return _HeadShare(
            kv_heads=kv_heads,
            cache_values=2 * kv_heads * dim,
            decode_flop=4 * heads * dim,
            prefill_flop=4 * heads * dim,
            prefill_query_values=2 * heads * dim,
            prefill_kv_values=2 * kv_heads * dim,
        )
    rank, rope, value_dim = attention.kv_lora_rank, attention.qk_rope_head_dim, attention.v_head_dim
    query_dim = attention.qk_nope_head_dim + rope
    return _HeadShare(
        kv_heads=1,
        cache_values=rank + rope,
        decode_flop=2 * heads * (2 * rank + rope),
        prefill_flop=2 * heads * (query_dim + value_dim),
        prefill_query_values=heads * (query_dim + value_dim),
        prefill_kv_values=heads * (query_dim + value_dim),
    )
