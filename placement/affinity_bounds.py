"""Upper bounds on the tokens that stay on their rank between two layers, so that an affinity solver can state a gap.

Each bound treats a pair of consecutive layers alone; their sum bounds the whole chain. z[e, f] = 1 where expert e of a
layer and f of the next share a rank: every row and column of z holds S = experts / ranks ones.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import eye_array, kron, vstack

from placement.affinity import check_affinity, experts_per_rank
from placement.plan import FloatArray


def affinity_bound(transitions: FloatArray, n_ranks: int) -> float:
    """No placement keeps more tokens on their rank [tokens]: per pair of layers the lower of two bounds, summed."""
    check_affinity(transitions, n_ranks)
    return sum(min(matching_bound(counts, n_ranks), spectral_bound(counts, n_ranks)) for counts in transitions)


def matching_bound(counts: FloatArray, n_ranks: int) -> float:
    """Largest weight of a fractional b-matching [tokens]: max sum A z, row and column sums S, 0 <= z <= 1.

    `counts` is float64[expert, expert]. Any placement's z is such a matching. It equals the linear relaxation of the
    transport-strengthened programme (`affinity_programmes.transport_programme`).
    """
    n_experts = len(counts)
    room = experts_per_rank(n_experts, n_ranks)
    ones = np.ones((1, n_experts))
    rows = kron(eye_array(n_experts), ones)
    columns = kron(ones, eye_array(n_experts))
    result = linprog(
        -counts.ravel(),
        A_eq=vstack([rows, columns]).tocsr(),
        b_eq=np.full(2 * n_experts, float(room)),
        bounds=(0, 1),
        method="highs",
    )
    # The dual value is a bound at any precision of the primal one; adding up duals needs no feasible z.
    return _matching_dual(counts, result.eqlin.marginals if result.success else np.zeros(2 * n_experts), room)


def spectral_bound(counts: FloatArray, n_ranks: int) -> float:
    """1'A1 / G + S * (sum of the G - 1 largest singular values of P A P) [tokens], P = I - 11'/E.

    Proof: z = X Y' with X'X = Y'Y = S I and X1 = Y1 = 1, so z / S is a partial isometry of rank G that fixes the
    all-ones direction, where it earns 1'A1 / (G S); on the complement it has rank G - 1 (von Neumann's inequality).
    """
    n_experts = len(counts)
    room = experts_per_rank(n_experts, n_ranks)
    centred = counts - counts.mean(axis=1, keepdims=True)
    centred = centred - centred.mean(axis=0, keepdims=True)
    strengths = np.linalg.svd(centred, compute_uv=False)
    return float(counts.sum() / n_ranks + room * strengths[: n_ranks - 1].sum())


def _matching_dual(counts: FloatArray, marginals: FloatArray, room: int) -> float:
    """Value of a dual point: S (sum u + sum v) + sum max(A - u - v, 0), a bound whatever u and v are."""
    n_experts = len(counts)
    row, column = -marginals[:n_experts], -marginals[n_experts:]
    over = np.maximum(counts - row[:, None] - column[None, :], 0.0)
    return float(room * (row.sum() + column.sum()) + over.sum())
