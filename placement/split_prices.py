"""What binds a plan: prices of tokens and of missing replicas, the dual values of the best split over replicas.

The programme of one layer, LPLB's: minimise z over y >= 0 with sum_r y[e, r] = load[e] and sum_e y[e, r] <= z, where
y[e, r] exists for ranks r that hold expert e. Its duals are p[r] >= 0 with sum_r p[r] = 1 (ranks) and
q[e] = min of p[r] over the ranks that hold e (experts); strong duality: z = sum_e q[e] load[e].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from placement.plan import FloatArray, Placement
from scenarios.errors import PlacementError


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPrices:
    """Dual values of the best split, layer by layer.

    busiest       float64[layer]: load of the busiest rank under the best split [unit of the loads].
    rank_price    float64[layer, rank]: how much the busiest rank falls for each token that rank is relieved of; ranks
                  above 0 bind.
    expert_price  float64[layer, expert]: how much the busiest rank rises for one more token of the expert.
    """

    busiest: FloatArray
    rank_price: FloatArray
    expert_price: FloatArray

    def relief(self, layer: int) -> FloatArray:
        """Fall of the busiest rank for each token of expert e that rank r could take, float64[expert, rank].

        It is the reduced cost of the variable y[e, r]: 0 where the expert is there already or a replica brings nothing
        on its own. It holds for the first tokens; more of them shift the prices.
        """
        saved: FloatArray = self.expert_price[layer][:, None] - self.rank_price[layer][None, :]
        return np.maximum(saved, 0.0)


def split_prices(placement: Placement, loads: FloatArray) -> SplitPrices:
    """Prices of `placement` under `loads` float64[layer, expert], by HiGHS.

    Raises PlacementError where shapes disagree.
    """
    if loads.shape != (placement.n_layers, placement.n_experts):
        raise PlacementError(
            f"loads have shape {loads.shape}, the plan is for {placement.n_layers} layers of {placement.n_experts}"
        )
    layers = [_layer_prices(placement, layer, loads[layer]) for layer in range(placement.n_layers)]
    busiest, ranks, experts = (np.stack(parts) for parts in zip(*layers, strict=True))
    return SplitPrices(busiest=busiest, rank_price=ranks, expert_price=experts)


def _layer_prices(placement: Placement, layer: int, loads: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Busiest load, prices of ranks and of experts of one layer."""
    n_experts, n_ranks = placement.n_experts, placement.n_ranks
    filled = placement.filled[layer]
    held, rank_of_slot = placement.expert_of_slot[layer, filled].astype(np.int64), placement.rank_of_slot[layer, filled]
    pairs = np.unique(held * n_ranks + rank_of_slot)
    expert, rank = np.divmod(pairs, n_ranks)
    n_pairs = len(pairs)
    scale = float(loads.sum()) or 1.0  # HiGHS has absolute tolerances
    place = np.arange(n_pairs)
    every_token = scipy.sparse.coo_array((np.ones(n_pairs), (expert, place)), shape=(n_experts, n_pairs + 1))
    signs = np.concatenate([np.ones(n_pairs), -np.ones(n_ranks)])
    rows = np.concatenate([rank, np.arange(n_ranks)])
    columns = np.concatenate([place, np.full(n_ranks, n_pairs)])
    below_busiest = scipy.sparse.coo_array((signs, (rows, columns)), shape=(n_ranks, n_pairs + 1))
    solved = scipy.optimize.linprog(
        np.append(np.zeros(n_pairs), 1.0),
        A_ub=below_busiest.toarray(),
        b_ub=np.zeros(n_ranks),
        A_eq=every_token.toarray(),
        b_eq=loads / scale,
        method="highs",
    )
    if solved.status != 0:
        raise PlacementError(f"the split of layer {layer} has no optimum ({solved.message}); report it")
    rank_price = np.maximum(-solved.ineqlin.marginals, 0.0)
    held = np.full((n_experts, n_ranks), np.inf)
    held[expert, rank] = rank_price[rank]
    return np.array((solved.fun or 0.0) * scale), rank_price, held.min(axis=1)
