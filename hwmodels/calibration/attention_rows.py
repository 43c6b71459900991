"""Rows of attention tables as arguments of the laws of `hwmodels.gqa` and `hwmodels.mla`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hwmodels.constants import DecodeConstants, MlaDecodeConstants, MlaPrefillConstants, PrefillConstants, Roofline
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.gemm import Times
from hwmodels.gqa import HeadShape, Prompts, gqa_decode_s, gqa_prefill_s
from hwmodels.mla import LatentShape, mla_decode_s, mla_prefill_s
from hwmodels.validation.timings import Timings

Places = NDArray[np.int64]

# SGLang's fa3 serves this window as chunks: 16,384 tokens take exactly twice as long as 8,192.
CHUNKED_SOURCE, CHUNK_TOKENS = "fa3", 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRows:
    """Columns over rows of a family `attention` or `mla` (DeepSeek-V3's widths, arXiv 2412.19437).

    attended  tokens attended to, clipped by the window and summed over queries and requests.
    window    the sliding window where it clips contexts, else infinite.
    left_out  why nothing is claimed of a row; "" where something is.
    """

    latent: bool
    decode: NDArray[np.bool_]
    requests: NDArray[np.int64]
    queries: NDArray[np.int64]
    attended: NDArray[np.int64]
    heads: NDArray[np.int64]
    kv_heads: NDArray[np.int64]
    head_dim: NDArray[np.int64]
    window: Times
    left_out: NDArray[np.str_]

    def seconds(self, places: Places, kv_dtype: str, device: Device, constants: Fitted) -> Times:
        """Predicted time of rows that are all prefill or all decode: float64[place] [s]."""
        requests, queries, attended = self.requests[places], self.queries[places], self.attended[places]
        prompts, decode = Prompts(requests, queries, attended), bool(self.decode[places[0]])
        if self.latent and decode:
            law = cast(MlaDecodeConstants | Roofline, constants)
            return mla_decode_s(requests, attended, self._latent_shape(places), kv_dtype, device, law)
        if self.latent:
            form = cast(MlaPrefillConstants | Roofline, constants)
            return mla_prefill_s(prompts, self._latent_shape(places), kv_dtype, device, form)
        shape = HeadShape(
            n_heads=self.heads[places],
            n_kv_heads=self.kv_heads[places],
            head_dim=self.head_dim[places],
            window_tokens=self.window[places],
        )
        if decode:
            split = cast(DecodeConstants | Roofline, constants)
            return gqa_decode_s(requests, attended, shape, kv_dtype, device, split)
        tiles = cast(PrefillConstants | Roofline, constants)
        return gqa_prefill_s(prompts, shape, kv_dtype, device, tiles)

    def only(self, places: Places) -> AttentionRows:
        """The chosen rows."""
        columns = [name for name in self.__dataclass_fields__ if name != "latent"]
        return replace(self, **{name: getattr(self, name)[places] for name in columns})

    def _latent_shape(self, places: Places) -> LatentShape:
        return LatentShape(n_heads=self.heads[places], cache_dim=576, latent_dim=512, key_dim=192, value_dim=128)


def attention_rows(timings: Timings) -> AttentionRows:
    """The rows of a table; one token of input is decode if it has a past."""
    latent = timings.family == "mla"
    requests, length, step = timings.ints("batch_size"), timings.ints("isl"), timings.ints("step")
    heads = timings.ints("num_heads")
    none = np.zeros_like(heads)
    window = timings.ints("window_size") if "window_size" in timings.columns else none
    decode = (length == 1) & (step > 0)
    context = np.where(decode, step + 1, length)
    clips = (window > 0) & (window < context)
    longest = np.where(clips, window, context)
    pairs = longest * (longest + 1) // 2 + (context - longest) * longest
    kv_heads = none if latent else timings.ints("num_key_value_heads")
    left_out = np.full(len(timings), "", dtype="U80")
    left_out[(length == 1) & (step == 0)] = "prefill of one token"
    left_out[(length > 1) & (step > 0)] = "chunk of a prompt that has a past"
    chunked = (timings.source == CHUNKED_SOURCE) & (window == CHUNK_TOKENS) & clips & ~decode
    left_out[chunked] = "attention within chunks, not behind a sliding window"
    if "gemm_type" in timings.columns:
        left_out[:] = "whole module with its projections"
    return AttentionRows(
        latent=latent,
        decode=decode,
        requests=requests,
        queries=requests * length,
        attended=requests * np.where(decode, longest, pairs),
        heads=heads,
        kv_heads=np.where(kv_heads == 0, heads, kv_heads),
        head_dim=none if latent else timings.ints("head_dim"),
        window=np.where(clips, window, np.inf),
        left_out=left_out,
    )
