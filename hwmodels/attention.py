"""Time of attention on one device: decode and prefill kernels, projections, for GQA and MLA."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hwmodels.devices import Device
from hwmodels.gemm import Times, gemm_s
from hwmodels.gqa import HeadShape, Prompts, gqa_decode_s, gqa_prefill_s
from hwmodels.measured_tables import Shape, head_key, latent_key, log_of
from hwmodels.mla import LatentShape, mla_decode_s, mla_prefill_s
from scenarios.errors import ScenarioError
from scenarios.models import BYTES_PER_VALUE, Attention, GroupedQueryAttention, LatentAttention


def attention_decode_s(
    requests: ArrayLike,
    context_tokens: ArrayLike,
    attention: Attention,
    tp: int,
    kv_dtype: str,
    device: Device,
) -> Times:
    """Time of one layer's decode attention, one query token per request, on one of `tp` devices: float64[...] [s].

    requests        int[...]: requests of the device.
    context_tokens  int[...]: tokens attended to, summed over the requests (`windowed_context` clips them first); the
                    laws take the requests as equally long.
    attention       of this layer: a window of GQA means that contexts were clipped by it.

    GQA: `gqa_decode_s` with the local heads; KV heads round up, each is repeated where devices outnumber them. MLA:
    `mla_decode_s`, absorbed; its cache is not split over tp.
    """
    if isinstance(attention, GroupedQueryAttention):
        shape = head_shape(attention, tp)
        times = gqa_decode_s(requests, context_tokens, shape, kv_dtype, device, device.kernels.decode(kv_dtype))
    else:
        latent, constants = latent_shape(attention, tp), device.kernels.mla_decode(kv_dtype)
        times = mla_decode_s(requests, context_tokens, latent, kv_dtype, device, constants)
    return times * decode_factor(requests, context_tokens, attention, tp, kv_dtype, device)


def attention_prefill_s(
    query_tokens: ArrayLike,
    attended_pairs: ArrayLike,
    attention: Attention,
    tp: int,
    kv_dtype: str,
    device: Device,
) -> Times:
    """Time of one layer's prefill attention, or of a chunk of it, on one of `tp` devices: float64[...] [s].

    query_tokens    int[...]: tokens of the chunk, over all its requests.
    attended_pairs  int[...]: sum over query tokens of the context each attends to, itself included: s * (s + 1) / 2
                    for a whole prompt of s tokens. Contexts are clipped by `windowed_context` first.
    attention       as of `attention_decode_s`.

    The laws need prompts: equally long ones are assumed, of min(queries, 2 * pairs / queries - 1) tokens. This is exact
    for whole prompts of one length and for a chunk of one prompt; chunks of several prompts that have a past count as
    fewer, longer ones.
    """
    queries, pairs = np.asarray(query_tokens, np.float64), np.asarray(attended_pairs, np.float64)
    length = np.maximum(np.minimum(queries, 2 * pairs / np.maximum(queries, 1) - 1), 1)
    requests = queries / length
    prompts = Prompts(requests, queries, pairs)
    if isinstance(attention, GroupedQueryAttention):
        shape = head_shape(attention, tp)
        times = gqa_prefill_s(prompts, shape, kv_dtype, device, device.kernels.prefill(kv_dtype))
    else:
        latent, constants = latent_shape(attention, tp), device.kernels.mla_prefill(kv_dtype)
        times = mla_prefill_s(prompts, latent, kv_dtype, device, constants)
    return times * prefill_factor(requests, length, attention, tp, kv_dtype, device)


def decode_work(context_tokens: ArrayLike, attention: Attention, tp: int, kv_dtype: str) -> tuple[Times, Times]:
    """FLOP, and bytes of cache, of one layer's decode attention on one of `tp` devices: float64[...] each.

    Every query head multiplies with keys and values of its context; the cache is read once for all heads that share it.
    A latent cache (MLA) is absorbed, and not split over tp.
    """
    context = np.asarray(context_tokens, np.float64)
    if isinstance(attention, GroupedQueryAttention):
        shape = head_shape(attention, tp)
        heads, values = np.asarray(shape.n_heads), 2 * np.asarray(shape.n_kv_heads) * np.asarray(shape.head_dim)
        width = 2 * np.asarray(shape.head_dim)
    else:
        latent = latent_shape(attention, tp)
        heads, values = np.asarray(latent.n_heads), np.asarray(latent.cache_dim)
        width = np.asarray(latent.cache_dim + latent.latent_dim)
    return 2.0 * context * heads * width, context * values * BYTES_PER_VALUE[kv_dtype]


def decode_factor(
    requests: ArrayLike, context_tokens: ArrayLike, attention: Attention, tp: int, kv_dtype: str, device: Device
) -> Times | float:
    """What decode's law is multiplied with by what tables hold: float64[...]; arguments as of `attention_decode_s`."""
    measured, mean = device.measured, np.asarray(context_tokens) / np.maximum(requests, 1)
    places = log_of(requests), log_of(mean)
    if not isinstance(attention, GroupedQueryAttention):
        return measured.factor("mla_decode", kv_dtype, attention_key(attention, tp), *places)
    factor = measured.factor("decode", kv_dtype, attention_key(attention, tp), *places)
    if attention.window_tokens is None:
        return factor
    clipped = attention_key(attention, tp, attention.window_tokens)
    behind = measured.factor("decode", kv_dtype, clipped, *places)
    return np.where(mean >= attention.window_tokens, behind, factor)


def prefill_factor(
    prompts: ArrayLike, length: ArrayLike, attention: Attention, tp: int, kv_dtype: str, device: Device
) -> Times | float:
    """The same of prefill, of prompts of one length; 1 where a window clips contexts, or may."""
    places, key = (log_of(prompts), log_of(length)), attention_key(attention, tp)
    if not isinstance(attention, GroupedQueryAttention):
        return device.measured.factor("mla_prefill", kv_dtype, key, *places)
    if attention.window_tokens is not None:
        return 1.0
    return device.measured.factor("prefill", kv_dtype, key, *places)


def attention_key(attention: Attention, tp: int, window_tokens: float = np.inf) -> Shape:
    """Shape by which tables hold a layer's attention on one of `tp` devices."""
    if isinstance(attention, GroupedQueryAttention):
        heads = head_shape(attention, tp)
        return head_key(heads.n_heads, heads.n_kv_heads, heads.head_dim, window_tokens)
    latent = latent_shape(attention, tp)
    return latent_key(latent.n_heads, latent.cache_dim, latent.latent_dim)


def attention_projections_s(
    tokens: ArrayLike, attention: Attention, hidden: int, tp: int, dtype: str, device: Device
) -> Times:
    """Time of the GEMMs around attention in one layer, on one of `tp` devices: float64[...] [s]."""
    return _products_s(tokens, projection_products(attention, hidden, tp), dtype, device)


def input_projections_s(
    tokens: ArrayLike, attention: Attention, hidden: int, tp: int, dtype: str, device: Device
) -> Times:
    """The part of `attention_projections_s` before the core of attention: float64[...] [s].

    All but the output GEMM and, of MLA, the GEMM that takes the values out of the latent.
    """
    after = 1 if isinstance(attention, GroupedQueryAttention) else 2
    return _products_s(tokens, projection_products(attention, hidden, tp)[:-after], dtype, device)


def _products_s(tokens: ArrayLike, products: list[tuple[int, int, int]], dtype: str, device: Device) -> Times:
    total_s = np.zeros(np.shape(tokens))
    for n, k, batch in products:
        total_s = total_s + gemm_s(tokens, n, k, dtype, device, batch=batch)
    return total_s


def projection_products(attention: Attention, hidden: int, tp: int) -> list[tuple[int, int, int]]:
    """(n, k, batch) of the GEMMs around attention in one layer, on one of `tp` devices.

    GQA: query-key-value GEMM and output GEMM. MLA: down GEMM (query and cache latents together, not split over tp), up
    GEMM of the queries where they have a latent, the two batched GEMMs that absorb keys and values, output GEMM. An
    expanded prefill has one up GEMM of keys and values instead, with the same FLOP and weights.
    """
    heads = local_heads(attention, tp)
    if isinstance(attention, GroupedQueryAttention):
        qkv_columns = (heads + 2 * -(-attention.n_kv_heads // tp)) * attention.head_dim
        return [(qkv_columns, hidden, 1), (hidden, heads * attention.head_dim, 1)]
    rank, query_rank = attention.kv_lora_rank, attention.q_lora_rank
    query_columns = heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
    down_columns = (query_rank or query_columns) + rank + attention.qk_rope_head_dim
    return [
        (down_columns, hidden, 1),
        *([(query_columns, query_rank, 1)] if query_rank is not None else []),
        (rank, attention.qk_nope_head_dim, heads),
        (attention.v_head_dim, rank, heads),
        (hidden, heads * attention.v_head_dim, 1),
    ]


def windowed_context(context_tokens: ArrayLike, window_tokens: int | None) -> Times:
    """Context of each query under a sliding window: float64[...]; clip per query or request, before any sum."""
    context = np.asarray(context_tokens, dtype=np.float64)
    return context if window_tokens is None else np.minimum(context, window_tokens)


def local_heads(attention: Attention, tp: int) -> int:
    """Query heads on one of `tp` devices. Raises ScenarioError where they cannot be shared evenly."""
    if tp < 1 or attention.n_heads % tp:
        raise ScenarioError(f"attention tp {tp} does not divide {attention.n_heads} heads; choose a divisor")
    return attention.n_heads // tp


def head_shape(attention: GroupedQueryAttention, tp: int) -> HeadShape:
    """Heads of a layer on one of `tp` devices; KV heads round up."""
    window = np.inf if attention.window_tokens is None else attention.window_tokens
    return HeadShape(
        n_heads=local_heads(attention, tp),
        n_kv_heads=-(-attention.n_kv_heads // tp),
        head_dim=attention.head_dim,
        window_tokens=window,
    )


def latent_shape(attention: LatentAttention, tp: int) -> LatentShape:
    """Heads of an MLA layer on one of `tp` devices, and the widths that they share."""
    return LatentShape(
        n_heads=local_heads(attention, tp),
        cache_dim=attention.kv_lora_rank + attention.qk_rope_head_dim,
        latent_dim=attention.kv_lora_rank,
        key_dim=attention.qk_nope_head_dim + attention.qk_rope_head_dim,
        value_dim=attention.v_head_dim,
    )
