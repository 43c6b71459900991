"""Time of attention on one device: decode and prefill kernels, projections, for GQA and MLA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.gemm import Times, gemm_s
from hwmodels.gqa import DecodeConstants, HeadShape, PrefillConstants, gqa_decode_s, gqa_prefill_s
from hwmodels.mla import LatentShape, MlaDecodeConstants, MlaPrefillConstants, mla_decode_s, mla_prefill_s
from scenarios.errors import ScenarioError
from scenarios.models import Attention, GroupedQueryAttention, LatentAttention

Block = TypeVar("Block", bound=Fitted)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConstants:
    """Constants of the attention kernels of one engine for one data type of the cache."""

    decode: DecodeConstants
    prefill: PrefillConstants
    mla_decode: MlaDecodeConstants
    mla_prefill: MlaPrefillConstants

    def block(self, latent: bool, decode: bool) -> Fitted:
        """Constants of one kernel: of MLA or not, of decode or prefill."""
        if latent:
            return self.mla_decode if decode else self.mla_prefill
        return self.decode if decode else self.prefill


def attention_decode_s(
    requests: ArrayLike,
    context_tokens: ArrayLike,
    attention: Attention,
    tp: int,
    kv_dtype: str,
    device: Device,
    constants: AttentionConstants,
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
        return gqa_decode_s(requests, context_tokens, shape, kv_dtype, device, constants.decode)
    return mla_decode_s(requests, context_tokens, latent_shape(attention, tp), kv_dtype, device, constants.mla_decode)


def attention_prefill_s(
    query_tokens: ArrayLike,
    attended_pairs: ArrayLike,
    attention: Attention,
    tp: int,
    kv_dtype: str,
    device: Device,
    constants: AttentionConstants,
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
    prompts = queries / length
    if isinstance(attention, GroupedQueryAttention):
        shape = head_shape(attention, tp)
        return gqa_prefill_s(prompts, queries, pairs, shape, kv_dtype, device, constants.prefill)
    latent = latent_shape(attention, tp)
    return mla_prefill_s(prompts, queries, pairs, latent, kv_dtype, device, constants.mla_prefill)


def attention_projections_s(
    tokens: ArrayLike, attention: Attention, hidden: int, tp: int, dtype: str, device: Device
) -> Times:
    """Time of the GEMMs around attention in one layer, on one of `tp` devices: float64[...] [s].

    GQA: query-key-value GEMM and output GEMM. MLA: down GEMM (query and cache latents together, not split over tp), up
    GEMM of the queries where they have a latent, the two batched GEMMs that absorb keys and values, output GEMM. An
    expanded prefill has one up GEMM of keys and values instead, with the same FLOP and weights.
    """
    heads = local_heads(attention, tp)
    if isinstance(attention, GroupedQueryAttention):
        qkv_columns = (heads + 2 * -(-attention.n_kv_heads // tp)) * attention.head_dim
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


def assumed_constants(device: Device) -> AttentionConstants:
    """Constants of the laws from those of a card of assumed kernel constants, which has none of these laws."""
    known = device.constants
    origin = {"source": "from the card of assumed kernel constants", "kind": "assumed"}
    times = dict.fromkeys(("unit_dim_s", "tile_s", "split_s", "request_s", "mask_s", "token_s"), "0 s")
    times |= dict.fromkeys(("unit_s", "item_s"), f"{known.attention_wave_s.value!r} s")
    numbers: dict[str, object] = (
        origin
        | times
        | {
            "fixed_s": f"{known.attention_fixed_s.value!r} s",
            "memory_frac": known.memory_frac.value,
            "sm_memory_frac": 1e9,  # no bound
            "unit_memory_frac": 1e9,
            "compute_frac": known.attention_compute_frac.value,
            "softmax_dims": 0,
        }
    )
    prefill = numbers | {"memory_frac": known.activation_memory_frac.value}
    return AttentionConstants(
        decode=_of(DecodeConstants, numbers),
        prefill=_of(PrefillConstants, prefill),
        mla_decode=_of(MlaDecodeConstants, numbers),
        mla_prefill=_of(MlaPrefillConstants, prefill),
    )


def _of(constants: type[Block], numbers: dict[str, object]) -> Block:
    """Constants of a law with those of the numbers that it has."""
    return constants.model_validate({name: numbers[name] for name in constants.model_fields if name in numbers})
