"""The fitted steps token by token, and what solvers count in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import PlacementError
from traces.routing import RoutingTrace
from traces.storage import release_pages

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSample:
    """Steps of a serving engine: which tokens every device holds.

    tokens  int64[step, device, token]: indices into `trace`, as `traces.batches.compose_batches` makes them.

    Raises PlacementError where a token is not in the trace.
    """

    trace: RoutingTrace
    tokens: NDArray[np.int64]

    def __post_init__(self) -> None:
        tokens = self.tokens
        if tokens.ndim != 3 or tokens.size == 0 or tokens.dtype.kind not in "iu":
            raise PlacementError(f"a sample is int64[step, device, token], got {tokens.dtype} {tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= self.trace.n_tokens:
            raise PlacementError(f"the sample names tokens outside the {self.trace.n_tokens} of its trace")
        own = tokens.astype(np.int64)
        own.setflags(write=False)
        object.__setattr__(self, "tokens", own)

    @property
    def n_steps(self) -> int:
        """Steps."""
        return int(self.tokens.shape[0])

    @property
    def n_devices(self) -> int:
        """Devices that hold tokens."""
        return int(self.tokens.shape[1])

    def ids(self, layer: int) -> NDArray[np.int64]:
        """Experts of every token in one layer, int64[step, device, k, token]; unused places hold `n_experts`."""
        rows = self.trace.ids[layer][:, self.tokens].astype(np.int64)
        release_pages(self.trace.ids)
        ids: NDArray[np.int64] = np.minimum(rows, self.trace.n_experts).transpose(1, 2, 0, 3)
        return ids

    def rows(self, layer: int) -> NDArray[np.int64]:
        """The same token by token, int64[step x device x token, k]."""
        ids = self.ids(layer)
        return ids.transpose(0, 1, 3, 2).reshape(-1, ids.shape[2])


def learned_steps(n_steps: int, most: int) -> NDArray[np.int64]:
    """Numbers of up to `most` steps for a search to learn from, int64[step], evenly spread.

    Over the first half of the steps where it has as many: the other half, mostly of other requests, can then tell what
    was learned by heart.
    """
    within = max(n_steps // 2, min(n_steps, most))
    return np.unique(np.linspace(0, within - 1, min(within, most)).round().astype(np.int64))


def batch_loads(sample: TokenSample) -> FloatArray:
    """Routed tokens of every step, float64[step, layer, expert]."""
    n_steps, n_experts = sample.n_steps, sample.trace.n_experts
    loads = np.empty((n_steps, sample.trace.n_layers, n_experts))
    first = np.arange(n_steps)[:, None] * (n_experts + 1)
    for layer in range(sample.trace.n_layers):
        cells = sample.ids(layer).reshape(n_steps, -1) + first
        counts = np.bincount(cells.ravel(), minlength=n_steps * (n_experts + 1))
        loads[:, layer] = counts.reshape(n_steps, -1)[:, :-1]
    return loads


def pair_counts(sample: TokenSample, first: int, second: int) -> FloatArray:
    """Tokens with expert i in layer `first` and j in layer `second`, float64[expert i, expert j]; all k x k pairs."""
    n_experts = sample.trace.n_experts
    members = [_members(sample, layer) for layer in dict.fromkeys((first, second))]
    counts = members[0].T @ members[-1]
    return np.asarray(counts[:n_experts, :n_experts], np.float64)


def coactivation(sample: TokenSample) -> FloatArray:
    """Tokens with both experts in one layer, float64[layer, expert, expert]; the diagonal holds the loads."""
    return np.stack([pair_counts(sample, layer, layer) for layer in range(sample.trace.n_layers)])


def transitions(sample: TokenSample) -> FloatArray:
    """Tokens with expert i in a layer and j in the next one, float64[layer - 1, expert, expert]; all k x k pairs."""
    pairs = [pair_counts(sample, layer, layer + 1) for layer in range(sample.trace.n_layers - 1)]
    return np.stack(pairs) if pairs else np.empty((0, sample.trace.n_experts, sample.trace.n_experts))


def _members(sample: TokenSample, layer: int) -> NDArray[np.float32]:
    """Whether a token has an expert, float32[token, expert + 1]: a product of two such tables counts pairs by BLAS."""
    rows = sample.rows(layer)
    members = np.zeros((len(rows), sample.trace.n_experts + 1), np.float32)
    members[np.arange(len(rows))[:, None], rows] = 1
    return members
