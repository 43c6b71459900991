"""Tokens of every expert in a row of an MoE kernel table, rebuilt as the collector of the table made them.

Rules read from aiconfigurator 0.12.0 (Apache-2.0), collector of the moe tables. With expert parallelism a row times the
experts of rank 0, to which the fullest rank was swapped.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

DRAWS = 5  # the collector averaged five draws of a skewed distribution
_POWER_LAW = re.compile(r"power_law_(\d+(?:\.\d+)?)$")


def is_known(distribution: str) -> bool:
    """Whether the counts of this distribution can be rebuilt."""
    return distribution == "balanced" or _POWER_LAW.match(distribution) is not None


@lru_cache(maxsize=4096)
def expert_counts(distribution: str, n_tokens: int, top_k: int, n_experts: int, n_ranks: int) -> NDArray[np.int64]:
    """Tokens of the experts of rank 0, int64[draw, expert]: one draw where balanced, several where skewed."""
    local = n_experts // n_ranks
    if distribution == "balanced":
        return balanced_counts(n_tokens, top_k, n_experts)[None, :local]
    match = _POWER_LAW.match(distribution)
    if match is None:
        raise ValueError(f"distribution {distribution} cannot be rebuilt")
    rng = np.random.default_rng([n_tokens, top_k, n_experts, n_ranks])
    draws = [power_law_counts(n_tokens, top_k, n_experts, float(match[1]), rng) for _ in range(DRAWS)]
    return np.stack([_fullest_rank(counts, n_ranks) for counts in draws])


def balanced_counts(n_tokens: int, top_k: int, n_experts: int) -> NDArray[np.int64]:
    """Tokens of each expert where slot k of token t goes to (t + k * stride) mod E, stride = ceil(E / K).

    Fewer tokens than the stride are spread: floor(t * stride / T + k * stride) mod E.
    """
    stride = -(-n_experts // top_k)
    token = np.arange(n_tokens)[:, None]
    first = token if n_tokens >= stride else token * stride // n_tokens
    chosen = (first + np.arange(top_k)[None, :] * stride) % n_experts
    return np.bincount(chosen.ravel(), minlength=n_experts)


def power_law_counts(
    n_tokens: int, top_k: int, n_experts: int, exponent: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """One draw of power-law counts: weights by inverse CDF between bounds, scaled to T * K, at most T an expert."""
    low, high = (1.0, 0.8 * n_tokens) if n_tokens * top_k > n_experts else (0.01, 2.0)
    power = 1 - exponent
    weights = ((high**power - low**power) * rng.random(n_experts) + low**power) ** (1 / power)
    counts: NDArray[np.int64] = np.minimum(
        np.round(weights / weights.sum() * n_tokens * top_k).astype(np.int64), n_tokens
    )
    level_out(counts, n_tokens * top_k - int(counts.sum()), n_tokens)
    return counts


def level_out(counts: NDArray[np.int64], missing: int, most: int) -> None:
    """Add `missing` tokens one by one to the emptiest expert below `most`, or take them from the fullest; in place."""
    while missing > 0 and (counts < most).any():
        emptiest = np.flatnonzero(counts == counts[counts < most].min())[:missing]
        counts[emptiest] += 1
        missing -= len(emptiest)
    while missing < 0 and counts.max() > 0:
        fullest = np.flatnonzero(counts == counts.max())[:-missing]
        counts[fullest] -= 1
        missing += len(fullest)


def _fullest_rank(counts: NDArray[np.int64], n_ranks: int) -> NDArray[np.int64]:
    ranks = counts.reshape(n_ranks, -1)
    fullest: NDArray[np.int64] = ranks[ranks.sum(axis=1).argmax()]
    return fullest
