"""Gate weights of a synthetic trace: softmax over the highest of normal logits, one spread for all layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def drawn_weights(ids: NDArray[Any], n_experts: int, spread: float, rng: np.random.Generator) -> NDArray[np.float16]:
    """Weights of chosen experts in descending order, summing to 1: float16[layer, k, token].

    Logits of a token are normal with deviation `spread`, and independent of each other and of which experts they are:
    the j-th highest of n uniform variables is the (j-1)-th times v^(1 / (n - j + 1)), v uniform (Renyi, Acta Math.
    Hung. 4, 1953).
    """
    from scipy.special import ndtri

    n_layers, k, n_tokens = ids.shape
    highest = np.ones((n_layers, n_tokens))
    logits = np.empty(ids.shape)
    for place in range(k):
        highest = highest * rng.random(highest.shape) ** (1 / (n_experts - place))
        logits[:, place] = spread * ndtri(np.clip(highest, 1e-300, 1 - 1e-16))
    unscaled = np.exp(logits - logits[:, :1])
    weights: NDArray[np.float16] = (unscaled / unscaled.sum(axis=1, keepdims=True)).astype(np.float16)
    return weights
