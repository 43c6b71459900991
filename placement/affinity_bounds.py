"""Upper bounds on the tokens that stay on their rank between two layers, so that an affinity solver can state a gap.

Each bound treats a pair of consecutive layers alone; their sum bounds the whole chain. z[e, f] = 1 where expert e of a
layer and f of the next share a rank: every row and column of z holds S = experts / ranks ones, and two rows are either
equal or have no one in common. docs/background/placement-bounds.md has the proofs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from placement.affinity import check_affinity, experts_per_rank
from placement.linear import LinearProgramme, solve_linear
from placement.plan import FloatArray

SQUARE_ROUNDS = {32: 3, 64: 1}  # rounds by experts, up to; a round looks at experts^4 squares, none beyond 64 experts
SQUARES_PER_ROUND = 3000
VIOLATED = 1e-3  # by more than this a square inequality is worth a row


def affinity_bound(transitions: FloatArray, n_ranks: int) -> float:
    """No placement keeps more tokens on their rank [tokens]: per pair of layers the lower of two bounds, summed."""
    check_affinity(transitions, n_ranks)
    return sum(min(matching_bound(counts, n_ranks), spectral_bound(counts, n_ranks)) for counts in transitions)


def spectral_bound(counts: FloatArray, n_ranks: int) -> float:
    """1'A1 / G + S * (sum of the G - 1 largest singular values of P A P) [tokens], P = I - 11'/E."""
    n_experts = len(counts)
    room = experts_per_rank(n_experts, n_ranks)
    centred = counts - counts.mean(axis=1, keepdims=True)
    strengths = np.linalg.svd(centred - centred.mean(axis=0, keepdims=True), compute_uv=False)
    return float(counts.sum() / n_ranks + room * strengths[: n_ranks - 1].sum())


def matching_bound(counts: FloatArray, n_ranks: int, *, square_rounds: int | None = None) -> float:
    """Largest weight of a fractional b-matching [tokens]: max sum A z, row and column sums S, 0 <= z <= 1, and squares.

    `counts` is float64[expert, expert]. Without squares it equals the relaxation of
    `affinity_programmes.transport_programme`. Square inequalities z_ef + z_eg + z_df - z_dg <= 2 (where e shares a rank
    with f and g, and d with f, d shares it with g) are added where violated, in `square_rounds` rounds: by default
    SQUARE_ROUNDS (on gpt-oss-20b a pair's bound falls from 0.697 to 0.634, 0.627, 0.626 of its tokens).
    """
    n_experts = len(counts)
    default = next((rounds for most, rounds in SQUARE_ROUNDS.items() if n_experts <= most), 0)
    programme = _matching(counts, experts_per_rank(n_experts, n_ranks))
    solution, best = solve_linear(programme)
    for _ in range(default if square_rounds is None else square_rounds):
        cuts = _violated_squares(solution.reshape(n_experts, n_experts))
        if len(cuts) == 0:
            break
        programme = _with_squares(programme, cuts, n_experts)
        solution, bound = solve_linear(programme, method="highs-ipm")
        best = max(best, bound)
    return -best


def _matching(counts: FloatArray, room: int) -> LinearProgramme:
    n_experts = len(counts)
    ones, each = np.ones((1, n_experts)), scipy.sparse.eye_array(n_experts)
    return LinearProgramme(
        cost=-counts.ravel(),
        at_most=scipy.sparse.csr_array((0, counts.size)),
        limit=np.zeros(0),
        equal=scipy.sparse.vstack([scipy.sparse.kron(each, ones), scipy.sparse.kron(ones, each)]).tocsr(),
        level=np.full(2 * n_experts, float(room)),
        lower=np.zeros(counts.size),
        upper=np.ones(counts.size),
    )


def _violated_squares(z: FloatArray) -> NDArray[np.intp]:
    """Squares (e, f, g, d) with z_ef + z_eg + z_df - z_dg > 2, the worst first, intp[cut, 4]; f and g differ."""
    found: list[NDArray[np.intp]] = []
    excess: list[FloatArray] = []
    for e, row in enumerate(z):
        # Only partners of e with a share can make a square that is violated: the two others add at most 1.
        near = np.flatnonzero(row > VIOLATED)
        over = row[near][None, :, None] + row[near][None, None, :] + z[:, near, None] - z[:, None, near] - 2.0
        d, f, g = np.nonzero(over > VIOLATED)
        keep = (d != e) & (f != g)
        d, f, g = d[keep], f[keep], g[keep]
        found.append(np.column_stack([np.full(len(f), e), near[f], near[g], d]))
        excess.append(over[d, f, g])
    order = np.argsort(-np.concatenate(excess), kind="stable")[:SQUARES_PER_ROUND]
    return np.asarray(np.concatenate(found)[order], dtype=np.intp)


def _with_squares(programme: LinearProgramme, cuts: NDArray[np.intp], n_experts: int) -> LinearProgramme:
    """The programme with z_ef + z_eg + z_df - z_dg <= 2 for each cut (e, f, g, d)."""
    e, f, g, d = cuts.T
    column = np.column_stack([e * n_experts + f, e * n_experts + g, d * n_experts + f, d * n_experts + g]).ravel()
    row = np.repeat(np.arange(len(cuts)), 4)
    rows: Any = scipy.sparse.coo_array(
        (np.tile([1.0, 1.0, 1.0, -1.0], len(cuts)), (row, column)), (len(cuts), n_experts**2)
    )
    return LinearProgramme(
        cost=programme.cost,
        at_most=scipy.sparse.vstack([programme.at_most, rows]).tocsr(),
        limit=np.concatenate([programme.limit, np.full(len(cuts), 2.0)]),
        equal=programme.equal,
        level=programme.level,
        lower=programme.lower,
        upper=programme.upper,
    )
