"""Independent checks of budgets, in plain loops that share no code with the knapsack."""

from __future__ import annotations

from collections.abc import Sequence

from scenarios.errors import PlacementError

ROUNDING = 1e-9  # relative, of sums in another order


def check_bits(option: Sequence[Sequence[int]], bits: Sequence[float], mean_bits: float, each: Sequence[int]) -> None:
    """Raise PlacementError unless the options [layer][expert] keep the mean, and every layer has those of `each`."""
    taken = [bits[one] for layer in option for one in layer]
    if sum(taken) > mean_bits * len(taken) * (1 + ROUNDING):
        raise PlacementError(f"experts take {sum(taken) / len(taken):g} bits on average, more than {mean_bits:g}")
    for number, layer in enumerate(option):
        for width in each:
            if width not in layer:
                raise PlacementError(f"no expert of layer {number} takes {bits[width]:g} bits, as `each` wants")


def check_tiers(tier: Sequence[int], size_bytes: Sequence[float], free_bytes: Sequence[float]) -> None:
    """Raise PlacementError unless every tier holds what lies in it."""
    for number, free in enumerate(free_bytes):
        held = sum(size for one, size in zip(tier, size_bytes, strict=True) if one == number)
        if held > free * (1 + ROUNDING):
            raise PlacementError(f"tier {number} holds {held:g} bytes of {free:g}")
