"""Budgets shared by layers or experts, each a multiple-choice knapsack: spare slots, bits per expert, memory tiers."""

from __future__ import annotations

import numpy as np

from placement.knapsack import AtLeast, Choice, choose
from placement.plan import FloatArray
from placement.problem import SharedSlots
from scenarios.errors import PlacementError, PlacementInfeasible


def allocated(costs: FloatArray, shared: SharedSlots, *, time_limit_s: float = 30.0) -> Choice:
    """Size of every layer, `option[layer]` into `shared.sizes`: the cheapest with at most `shared.total` replica slots.

    costs  float64[layer, size]  of each layer, in seconds or tokens. A cost may rise with the slots: in memory-bound
    decode every slot is another read of weights (CRAFT, arXiv 2603.28768).
    """
    weights = np.broadcast_to(np.array(shared.sizes, float), costs.shape)
    return choose(costs, weights[None], np.array([float(shared.total)]), time_limit_s=time_limit_s)


def bit_widths(
    losses: FloatArray,
    bits: FloatArray,
    mean_bits: float,
    *,
    one_of_each: tuple[int, ...] = (),
    time_limit_s: float = 30.0,
) -> Choice:
    """Option of every expert, `option[block * experts + expert]`, of least total loss within the mean bits per expert.

    losses       float64[block, expert, option]  importance times quantisation error, as MC-MoE weighs it.
    bits         float64[option]                 bits per weight; 0 prunes the expert.
    one_of_each  options that at least one expert of every block takes (MC-MoE: those of 2 and 3 bits).

    MC-MoE (arXiv 2410.06270, equation 6) solves one programme a block; the budget here is shared by all blocks, so that
    a block may take more at the cost of another. Losses of blocks are assumed to add up, as they do there.
    """
    n_blocks, n_experts, n_options = losses.shape
    if bits.shape != (n_options,):
        raise PlacementError(f"bits has shape {bits.shape}, expected ({n_options},), one for each option of losses")
    if bits.min() > mean_bits:
        raise PlacementInfeasible(
            f"a mean of {mean_bits:g} bits is below the lightest width, {bits.min():g}: {bits.min() - mean_bits:g} "
            "short; raise the mean, or offer fewer bits"
        )
    flat = losses.reshape(-1, n_options)
    rules = [
        AtLeast(items=tuple(range(block * n_experts, (block + 1) * n_experts)), option=option, count=1)
        for block in range(n_blocks)
        for option in one_of_each
    ]
    weights = np.broadcast_to(bits, flat.shape)[None]
    return choose(flat, weights, np.array([mean_bits * len(flat)]), at_least=rules, time_limit_s=time_limit_s)


def tier_residency(
    costs: FloatArray, size_bytes: FloatArray, free_bytes: FloatArray, *, time_limit_s: float = 30.0
) -> Choice:
    """Memory tier of every expert, `option[expert]`, of least total cost: HBM, DRAM, PIM or whatever the columns are.

    costs       float64[expert, tier]  expected time of the expert in that tier [s]; inf where it may not lie there.
    size_bytes  float64[expert]        free_bytes float64[tier].

    Raises PlacementInfeasible where the tiers together are too small, by how much.
    """
    n_experts, n_tiers = costs.shape
    if size_bytes.shape != (n_experts,) or free_bytes.shape != (n_tiers,):
        raise PlacementError(
            f"{n_experts} experts and {n_tiers} tiers, but size_bytes {size_bytes.shape}, free_bytes {free_bytes.shape}"
        )
    short = float(size_bytes.sum() - free_bytes.sum())
    if short > 0:
        raise PlacementInfeasible(
            f"{n_experts} experts take {size_bytes.sum() / 2**30:,.2f} GiB, the {n_tiers} tiers have "
            f"{free_bytes.sum() / 2**30:,.2f} GiB: {short / 2**30:,.2f} GiB short; enlarge a tier, or quantise experts"
        )
    weights = np.zeros((n_tiers, n_experts, n_tiers))
    for tier in range(n_tiers):
        weights[tier, :, tier] = size_bytes
    return choose(costs, weights, free_bytes, time_limit_s=time_limit_s)
