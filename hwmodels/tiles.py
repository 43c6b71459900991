"""Tiles of grouped GEMM kernels: which sizes an engine runs for how many tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Tile = tuple[int, int]
"""Rows (tokens) and columns (outputs) of a tile."""

FASTEST: tuple[Tile, ...] = ((16, 128), (64, 128), (128, 128))
"""Menu of kernels that are tuned for every shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRule:
    """How an engine chooses among tiles.

    by     "fastest": the tile of least time; "tokens": by the tokens of the call; "tokens_per_expert": by the same
           over the number of experts.
    tiles  those chosen from; with a rule by tokens, tile i holds up to `up_to[i]`, the last one above.
    tuned  (experts, intermediate size on the rank) of shapes for which the engine ships tuned tiles instead: the
           fastest of `FASTEST`.
    """

    by: Literal["fastest", "tokens", "tokens_per_expert"]
    tiles: tuple[Tile, ...]
    up_to: tuple[float, ...] = ()
    tuned: frozenset[tuple[int, int]] = frozenset()

    def choice(self, tokens: ArrayLike, n_experts: ArrayLike) -> NDArray[np.int64]:
        """Place in `tiles` of the tile that a call of `tokens` takes: int64[...]; not for "fastest"."""
        size = np.asarray(tokens, np.float64)
        if self.by == "tokens_per_expert":
            size = size / np.asarray(n_experts, np.float64)
        return np.searchsorted(np.asarray(self.up_to), size, side="left")

    def is_tuned(self, n_experts: ArrayLike, intermediate_size: ArrayLike) -> NDArray[np.bool_]:
        """Whether the engine ships tuned tiles for a shape: bool[...]."""
        experts, sizes = np.broadcast_arrays(np.asarray(n_experts), np.asarray(intermediate_size))
        if experts.ndim == 0:
            return np.asarray((int(experts), int(sizes)) in self.tuned)
        found = np.zeros(experts.shape, dtype=bool)
        for n, size in self.tuned:
            found |= (experts == n) & (sizes == size)
        return found


RuleName = Literal["fastest", "vllm-bf16", "vllm-fp8-block", "sglang-bf16", "sglang-fp8-block"]

TILE_RULES: dict[RuleName, TileRule] = {
    # TensorRT-LLM and FlashInfer tune when they load a model.
    "fastest": TileRule(by="fastest", tiles=FASTEST),
    # vLLM 0.24, default configuration of fused_moe; `tuned` are shapes with a file for H200 among its `configs`.
    "vllm-bf16": TileRule(
        by="tokens",
        tiles=((16, 64), (32, 64), (32, 128), (64, 128), (128, 128)),
        up_to=(32, 64, 96, 512),
        tuned=frozenset(
            {(8, n) for n in (1792, 2048, 3584, 4096, 7168, 14336)}
            | {(128, n) for n in (96, 176, 192, 256, 352, 384, 704, 768, 1024)}
            | {(512, n) for n in (64, 128, 256, 512)}
        ),
    ),
    "vllm-fp8-block": TileRule(by="tokens", tiles=((16, 128), (64, 128)), up_to=(64,)),
    # SGLang 0.5, default configuration of fused_moe_triton; shapes with a tuned file for H200 among its `configs`.
    # (128, 704) was recognised by its times.
    "sglang-bf16": TileRule(
        by="tokens_per_expert",
        tiles=((16, 32), (64, 64)),
        up_to=(1,),
        tuned=frozenset({(8, 1792), (8, 3584), (8, 7168), (8, 14336), (128, 192), (128, 384), (128, 704), (128, 768)}),
    ),
    "sglang-fp8-block": TileRule(by="tokens", tiles=((64, 128),)),
}
