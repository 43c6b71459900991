"""Time of the attention kernels of multi-head latent attention (MLA), prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hwmodels.blends import norm4
from hwmodels.constants import MlaDecodeConstants, MlaPrefillConstants, Roofline
from hwmodels.devices import Device
from hwmodels.gemm import BF16_BYTES, Times
from hwmodels.gqa import HeadShape, Prompts, gqa_prefill_s, roofline_s, tiles_per_sm
from scenarios.models import BYTES_PER_VALUE

# Tiles of the MLA kernels of FlashAttention-3 (head_dim_v 512, hopper/tile_size.h) and FlashMLA (deepseek-ai/FlashMLA).
HEAD_TILE = 64
KV_TILE_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Heads on one device, a number or an array over rows, and the widths that they share.

    cache_dim  values of a cached token: latent and rotary key.    latent_dim  those of the latent alone.
    key_dim    values of an expanded query and key.                value_dim   those of an expanded value.
    """

    n_heads: ArrayLike
    cache_dim: int
    latent_dim: int
    key_dim: int
    value_dim: int


def mla_decode_s(
    requests: ArrayLike,
    context_tokens: ArrayLike,
    shape: LatentShape,
    kv_dtype: str,
    device: Device,
    constants: MlaDecodeConstants | Roofline,
) -> Times:
    """Time of absorbed decode attention, one query token per request: float64[...] [s].

    requests        int[...]
    context_tokens  int[...]: tokens attended to, summed over the requests.

    All heads read one latent and one rotary key a token (DeepSeek-V2, arXiv 2405.04434, section 2.1). On S
    multiprocessors n = requests * ceil(heads / 64) units read tiles of 64 tokens; `run` is split-KV of `gqa_decode_s`.

        unit  = unit_s + min(heads, 64) * (cache_dim + latent_dim) * 2 / (unit_memory_frac * BW / S)
        tile  = max(64 * cache_dim * kv bytes / (sm_memory_frac * BW / S),
                    2 * 64 * 64 * (cache_dim + latent_dim) / (compute_frac * peak / S))
        all   = (cache + query and output bytes) / (memory_frac * BW)
        T     = fixed_s + max(n / S, 1) * unit + ((ceil(n / S) * run * tile)^4 + all^4)^(1/4) + [run < tiles] * split_s
                + requests * request_s

    With cast_frac an engine first expands the whole cache to bf16, at (kv bytes + 2) bytes a value, and reads that.
    No requests leave fixed_s. Errors on held-out head counts are in docs/background/calibration.md.
    """
    batch, context = np.asarray(requests, np.float64), np.asarray(context_tokens, np.float64)
    heads = np.asarray(shape.n_heads, np.float64)
    if isinstance(constants, Roofline):
        values = shape.cache_dim + shape.latent_dim
        moved = context * (shape.cache_dim * BYTES_PER_VALUE[kv_dtype]) + batch * heads * (values * BF16_BYTES)
        return roofline_s(2 * context * heads * values, moved, device, constants)
    sms, bandwidth = device.n_sms, device.memory_bytes_per_s
    cached_bytes = BYTES_PER_VALUE[kv_dtype]
    read_bytes = cached_bytes if constants.cast_frac is None else BF16_BYTES
    query_values = shape.cache_dim + shape.latent_dim
    units = batch * np.ceil(heads / HEAD_TILE)
    tiles = np.ceil(context / np.maximum(batch, 1) / KV_TILE_TOKENS)
    run = tiles_per_sm(tiles, units, sms, constants.max_splits, constants.unsplit_tiles)
    unit_bytes = np.minimum(heads, HEAD_TILE) * (query_values * BF16_BYTES)
    unit_s = constants.unit_s + unit_bytes * sms / (constants.unit_memory_frac * bandwidth)
    tile_bytes = KV_TILE_TOKENS * shape.cache_dim * read_bytes
    tile_flop = 2 * HEAD_TILE * KV_TILE_TOKENS * query_values
    flop_per_s = constants.compute_frac * device.peak_flop_per_s("bf16")
    tile_s = max(tile_bytes * sms / (constants.sm_memory_frac * bandwidth), tile_flop * sms / flop_per_s)
    moved = context * (shape.cache_dim * read_bytes) + batch * heads * (query_values * BF16_BYTES)
    read_s = norm4(np.ceil(units / sms) * run * tile_s, moved / (constants.memory_frac * bandwidth))
    busy_s = np.maximum(units / sms, 1) * unit_s + read_s + (run < tiles) * constants.split_s
    if constants.cast_frac is not None:
        cast_bytes = context * (shape.cache_dim * (cached_bytes + BF16_BYTES))
        busy_s = busy_s + cast_bytes / (constants.cast_frac * bandwidth)
    return constants.fixed_s + (batch > 0) * (busy_s + batch * constants.request_s)


def mla_prefill_s(
    prompts: Prompts,
    shape: LatentShape,
    kv_dtype: str,
    device: Device,
    constants: MlaPrefillConstants | Roofline,
) -> Times:
    """Time of causal attention of prompts or of chunks of them: float64[...] [s].

    Expanded, every head has its keys and values: `gqa_prefill_s` with as many KV heads as heads, and the mean of
    key_dim and value_dim. Absorbed, all heads share the latent: one KV head, and the mean of cache_dim and latent_dim.
    """
    expanded = isinstance(constants, Roofline) or constants.form == "expanded"
    wide = shape.key_dim + shape.value_dim if expanded else shape.cache_dim + shape.latent_dim
    heads = HeadShape(n_heads=shape.n_heads, n_kv_heads=shape.n_heads if expanded else 1, head_dim=wide / 2)
    return gqa_prefill_s(prompts, heads, kv_dtype, device, constants)
