"""Time of the attention kernels of MHA, GQA and MQA, prefill and decode; expanded MLA prefill runs the same kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.blends import norm4
from hwmodels.constants import DecodeConstants, PrefillConstants, Roofline
from hwmodels.core_constants import CoreDecodeConstants, CorePrefillConstants
from hwmodels.cores import Heads, decode_s, prefill_s
from hwmodels.devices import Device
from hwmodels.gemm import BF16_BYTES, Times
from scenarios.models import BYTES_PER_VALUE

# Tiles and splits of FlashAttention-3 on SM90 (Dao-AILab/flash-attention, BSD-3-Clause): hopper/tile_size.h at 07602ad,
# prefill causal and decode not, heuristics.h at 13d0fd9, and flash_prepare_scheduler.cu.
KV_TILE_TOKENS = 128  # in prefill, and in decode with a cache of one byte a value
QUERY_TILE_ROWS = ((64, 192), (256, 128), (np.inf, 64))  # up to this head_dim
DECODE_TILE_TOKENS = ((64, 192), (128, 176), (192, 112), (256, 80), (np.inf, 64))  # with a cache of two bytes a value
SPLIT_SLACK = 1.1  # decode gives each multiprocessor a tenth more tiles than an even share before it splits again
PREFILL_SPLIT_BELOW = 0.8  # prefill splits contexts where its items fill less than this share of the multiprocessors
CACHE_WRITE_THREADS = 512  # largest thread block of vLLM's reshape_and_cache kernel, one block a token (Apache-2.0)
PADDED_DIM = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """What one device holds of the heads of a layer; every field is a number or an array over rows.

    head_dim       values of a query and key; with values of another width, the mean of both.
    window_tokens  sliding window where it clips contexts; infinite where it does not.
    """

    n_heads: ArrayLike
    n_kv_heads: ArrayLike
    head_dim: ArrayLike
    window_tokens: ArrayLike = np.inf


def gqa_decode_s(
    requests: ArrayLike,
    context_tokens: ArrayLike,
    shape: HeadShape,
    kv_dtype: str,
    device: Device,
    constants: DecodeConstants | CoreDecodeConstants | Roofline,
) -> Times:
    """Time of decode attention, one query token per request: float64[...] [s]; law `split-kv`, `cores`, `roofline`.

    requests        int[...]
    context_tokens  int[...]: tokens attended to, clipped by the window and summed over the requests.

    Split-KV on S multiprocessors: n = requests * kv heads * ceil(group / rows) units of tiles = ceil(mean context /
    tokens), of which a multiprocessor reads

        run = tiles                                                        where n > S or tiles <= unsplit_tiles
        run = clip(ceil(1.1 * tiles * n / S), ceil(tiles / max_splits), tiles)                         otherwise

        alone = ceil(n / S) * run * (tile_s + 2 * tokens * head_dim * kv bytes / (sm_memory_frac * BW / S))
        all   = (cache + query and output bytes) / (memory_frac * BW)
        unit  = unit_s + unit_dim_s * head_dim / 128 + [window] * mask_s * sqrt(128 / head_dim)
        T     = fixed_s + max(n / S, 1) * unit + (alone^4 + all^4)^(1/4) + [run < tiles] * split_s
                + requests * request_s

    rows are 192 up to head_dim 64, 128 up to 256, else 64; tokens 192, 176, 112, 80 up to head_dim 64, 128, 192, 256 of
    a cache in 16 bits, 128 in 8 bits. Keys and values of a KV head are read once for all queries of its group. Requests
    of one call are taken as equally long. No requests leave fixed_s. More context never shortens it, save where
    splitting begins beyond unsplit_tiles. Errors on held-out head configurations are in docs/background/calibration.md.
    """
    batch, context = np.asarray(requests, np.float64), np.asarray(context_tokens, np.float64)
    heads, kv_heads, dim = _heads(shape)
    if isinstance(constants, CoreDecodeConstants):
        cores = Heads(heads=heads, kv_heads=kv_heads, head_dim=dim)
        return decode_s(batch, context, cores, kv_dtype, device, constants)
    if isinstance(constants, Roofline):
        moved = context * kv_heads * dim * (2 * BYTES_PER_VALUE[kv_dtype]) + batch * heads * dim * (2 * BF16_BYTES)
        return roofline_s(4 * context * heads * dim, moved, device, constants)
    sms, bandwidth = device.n_sms, device.memory_bytes_per_s
    mean = context / np.maximum(batch, 1)
    units = batch * kv_heads * np.ceil(heads / kv_heads / _tile_rows(dim))
    tile_tokens = _decode_tile_tokens(dim, BYTES_PER_VALUE[kv_dtype])
    tiles = np.ceil(mean / tile_tokens)
    run = tiles_per_sm(tiles, units, sms, constants.max_splits, constants.unsplit_tiles)
    tile_bytes = 2 * tile_tokens * dim * BYTES_PER_VALUE[kv_dtype]
    tile_s = constants.tile_s + tile_bytes * sms / (constants.sm_memory_frac * bandwidth)
    moved = context * kv_heads * dim * (2 * BYTES_PER_VALUE[kv_dtype]) + batch * heads * dim * (2 * BF16_BYTES)
    read_s = norm4(np.ceil(units / sms) * run * tile_s, moved / (constants.memory_frac * bandwidth))
    masked = mean >= np.asarray(shape.window_tokens, np.float64)
    unit_s = constants.unit_s + constants.unit_dim_s * (dim / 128) + masked * constants.mask_s * np.sqrt(128 / dim)
    limit = constants.scheduled_requests or np.inf
    per_request_s = np.where(batch <= limit, batch, 0) * constants.request_s
    busy_s = np.maximum(units / sms, 1) * unit_s + read_s + (run < tiles) * constants.split_s + per_request_s
    return cast(Times, constants.fixed_s + (dim == PADDED_DIM) * constants.pad_s + (batch > 0) * busy_s)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of one call, or chunks of them, taken as equally long; every field is a number or an array over rows.

    requests        float[...]: how many.
    query_tokens    int[...]: their tokens together.
    attended_pairs  int[...]: sum over query tokens of the context each attends to, itself included and clipped by the
                    window: s * (s + 1) / 2 for a whole prompt of s tokens.
    """

    requests: ArrayLike
    query_tokens: ArrayLike
    attended_pairs: ArrayLike

    def arrays(self) -> tuple[Times, Times, Times]:
        """Requests, query tokens and attended pairs: float64[...] each."""
        fields = (self.requests, self.query_tokens, self.attended_pairs)
        requests, queries, pairs = (np.asarray(field, np.float64) for field in fields)
        return requests, queries, pairs

    def contexts(self) -> tuple[Times, Times, Times]:
        """Tokens of one prompt, and the mean and longest context of its queries: float64[...] each.

        Contexts grow by one with every query: the longest is as much above the mean as the first is below it.
        """
        requests, queries, pairs = self.arrays()
        length, mean = queries / np.maximum(requests, 1e-9), pairs / np.maximum(queries, 1)
        return length, mean, mean + (length - 1) / 2


def gqa_prefill_s(
    prompts: Prompts,
    shape: HeadShape,
    kv_dtype: str,
    device: Device,
    constants: PrefillConstants | CorePrefillConstants | Roofline,
) -> Times:
    """Time of causal attention of prompts or of chunks of them, and of writing them to the cache: float64[...] [s].

    Law `tiles` (below), `cores` or `roofline`, by the constants. No tokens leave fixed_s. Errors on held-out head
    configurations are in docs/background/calibration.md.
    """
    if isinstance(constants, PrefillConstants):
        return _tiled_prefill_s(prompts, shape, kv_dtype, device, constants)
    _, queries, pairs = prompts.arrays()
    heads, kv_heads, dim = _heads(shape)
    if isinstance(constants, CorePrefillConstants):
        longest = prompts.contexts()[2]
        return prefill_s(
            queries, longest, Heads(heads=heads, kv_heads=kv_heads, head_dim=dim), kv_dtype, device, constants
        )
    moved = queries * (2 * BF16_BYTES) * (heads + kv_heads) * dim
    return roofline_s(4 * pairs * heads * dim, moved, device, constants)


def _tiled_prefill_s(
    prompts: Prompts, shape: HeadShape, kv_dtype: str, device: Device, constants: PrefillConstants
) -> Times:
    """Law `tiles`: float64[...] [s].

    An item is a tile of `rows` queries (as in decode), the g heads of a group packed, so that it spans rows / g of
    the s tokens of a prompt. n items share S multiprocessors; the longest one bounds. With the longest context W,
    tiles = W / 128, and the mean context m:

        n     = requests * kv heads * ceil(s * g / rows)
        blocks = kv heads * queries * (m + (rows / g - 1) / 2) / (128 * rows / g) + n / 2
        tile  = 4 * rows * 128 * (head_dim + softmax_dims) / (compute_frac * peak / S)
        io    = min(rows, s * g) * head_dim * 4 / (memory_frac * BW / S) + [window] * mask_s
        total = ceil(n / S) * (item_s + io) + blocks * tile / S
        run   = tiles, or clip(tiles * n / S, 1, tiles) where n < 0.8 * S and tiles > unsplit_tiles
        one   = io + (run + 1/2) * tile + [run < tiles] * split_s
        T     = fixed_s + (total^4 + one^4)^(1/4) + new tokens * token_s * min(kv heads * head_dim, 512) / 512
                + (keys and values: read in bf16, written and, of past tokens, read as cached) / (memory_frac * BW)
    """
    requests, queries, _ = prompts.arrays()
    length, mean, longest = prompts.contexts()
    heads, kv_heads, dim = _heads(shape)
    window = np.asarray(shape.window_tokens, np.float64)
    sms, share = device.n_sms, device.memory_bytes_per_s * constants.memory_frac / device.n_sms
    rows, group = _tile_rows(dim), heads / kv_heads
    span = rows / group
    items = requests * kv_heads * np.ceil(length * group / rows)
    blocks = kv_heads * queries * (mean + (span - 1) / 2) / (KV_TILE_TOKENS * span) + items / 2
    tile_flop = 4 * KV_TILE_TOKENS * rows * (dim + constants.softmax_dims)
    tile_s = tile_flop * sms / (constants.compute_frac * device.peak_flop_per_s("bf16"))
    masked_s = (longest > window) * constants.mask_s
    io_s = np.minimum(rows, length * group) * dim * (2 * BF16_BYTES) / share + masked_s
    total_s = np.ceil(items / sms) * (constants.item_s + io_s) + blocks * tile_s / sms
    tiles = np.minimum(longest, window) / KV_TILE_TOKENS
    split = (items < PREFILL_SPLIT_BELOW * sms) & (np.ceil(tiles) > constants.unsplit_tiles)
    run = np.where(split, np.minimum(np.maximum(tiles * items / sms, 1), tiles), tiles)
    longest_s = io_s + (run + 0.5) * tile_s + (run < tiles) * constants.split_s
    past = np.maximum(mean - (length + 1) / 2, 0) * requests
    cache_s = _cache_s(queries, past, kv_heads * dim, BYTES_PER_VALUE[kv_dtype], share * sms, constants.token_s)
    busy_s = norm4(total_s, longest_s) + cache_s
    return cast(Times, constants.fixed_s + (dim == PADDED_DIM) * constants.pad_s + (queries > 0) * busy_s)


def _cache_s(queries: Times, past: Times, width: Times, kv_bytes: float, bytes_per_s: float, token_s: float) -> Times:
    """Keys and values of `width` values each: of new tokens read in bf16 and written, of past ones read, as cached."""
    moved = (queries * (BF16_BYTES + kv_bytes) + past * kv_bytes) * (2 * width)
    threads = np.minimum(width, CACHE_WRITE_THREADS) / CACHE_WRITE_THREADS
    return moved / bytes_per_s + queries * threads * token_s


def tiles_per_sm(tiles: Times, units: Times, n_sms: int, max_splits: int, unsplit_tiles: int) -> NDArray[np.float64]:
    """How many of the tiles of a context one multiprocessor reads: split-KV, `run` of `gqa_decode_s`."""
    even = np.ceil(SPLIT_SLACK * tiles * units / n_sms)
    run = np.minimum(np.maximum(even, np.ceil(tiles / max_splits)), tiles)
    return np.where((units > n_sms) | (tiles <= unsplit_tiles), tiles, run)


def roofline_s(flop: Times, moved_bytes: Times, device: Device, constants: Roofline) -> Times:
    """fixed_s + max(flop, bytes) in bf16: float64[...] [s]."""
    compute_s = flop / (constants.compute_frac * device.peak_flop_per_s("bf16"))
    return constants.fixed_s + np.maximum(compute_s, moved_bytes / (constants.memory_frac * device.memory_bytes_per_s))


def _heads(shape: HeadShape) -> tuple[Times, Times, Times]:
    fields = (shape.n_heads, shape.n_kv_heads, shape.head_dim)
    heads, kv_heads, dim = (np.asarray(field, np.float64) for field in fields)
    return heads, kv_heads, dim


def _tile_rows(head_dim: Times) -> Times:
    """Queries in a tile, with all heads of a group beside each other."""
    return _up_to(QUERY_TILE_ROWS, head_dim)


def _decode_tile_tokens(head_dim: Times, kv_bytes: float) -> Times:
    """Cached tokens in a tile of decode."""
    return _up_to(DECODE_TILE_TOKENS if kv_bytes >= BF16_BYTES else ((np.inf, KV_TILE_TOKENS),), head_dim)


def _up_to(steps: tuple[tuple[float, int], ...], head_dim: Times) -> Times:
    """Value of the first step that head_dim does not exceed."""
    limits, values = np.array(steps, np.float64).T
    return cast(Times, values[np.searchsorted(limits, head_dim)])
