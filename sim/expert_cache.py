"""What passes do about experts that a device may not hold, decided from routing alone, before any time is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import ScenarioError

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUse:
    """Experts that a pass uses in one layer, each group in ascending order.

    resident  on the device; coming: copied ahead, by a prefetch that nobody has waited for yet.
    copied    missed and copied to the device; hosted: missed and computed by the host.
    ahead     copies for the next layer that are started here; None where nothing is predicted.
    """

    resident: tuple[int, ...]
    coming: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    hosted: tuple[int, ...] = ()
    ahead: tuple[int, ...] | None = None

    @property
    def n_hits(self) -> int:
        """Experts that had a slot when they were asked for."""
        return len(self.resident) + len(self.coming)

    @property
    def n_misses(self) -> int:
        """Experts that had none."""
        return len(self.copied) + len(self.hosted)


class SlotCache:
    """Slots of one layer, the least recently used expert leaving first; of those used at once the higher number.

    At the begin it holds the first experts, as if all were used at once.
    """

    def __init__(self, n_slots: int, n_experts: int) -> None:
        if not 1 <= n_slots <= n_experts:
            raise ScenarioError(f"{n_slots} slots for {n_experts} experts; choose 1 to {n_experts}")
        self.n_slots, self._time = n_slots, 0
        self._used = np.full(n_experts, -1, np.int64)
        self._rank = np.arange(n_experts)[::-1]
        self._used[:n_slots] = self._rank[:n_slots]
        self.coming: set[int] = set()

    def holds(self, expert: int) -> bool:
        """Whether the expert has a slot."""
        return bool(self._used[expert] >= 0)

    def use(self, wanted: Iterable[int]) -> tuple[int, ...]:
        """Those of the wanted experts that had no slot, ascending; afterwards all have one.

        Raises ScenarioError where they are more than the slots.
        """
        experts = sorted(wanted)
        if len(experts) > self.n_slots:
            raise ScenarioError(f"a step wants {len(experts)} experts of a layer, the device has {self.n_slots} slots")
        missed = tuple(expert for expert in experts if not self.holds(expert))
        self._time += 1
        self._used[experts] = self._time * len(self._used) + self._rank[experts]
        surplus = int((self._used >= 0).sum()) - self.n_slots
        held = np.flatnonzero(self._used >= 0)
        for expert in held[np.argsort(self._used[held])][:surplus].tolist():
            self._used[expert] = -1
            self.coming.discard(expert)
        return missed


def all_resident(counts: Counts) -> list[list[LayerUse]]:
    """Uses [pass][layer] where the device holds every expert; counts int64 [pass, layer, expert]."""
    return [[LayerUse(resident=_present(layer)) for layer in one] for one in counts]


def offloaded(
    counts: Counts, predicted: Sequence[Sequence[Sequence[int]]] | None, n_slots: int, copy_from_tokens: int
) -> list[list[LayerUse]]:
    """Uses [pass][layer] with `n_slots` slots a layer.

    counts            int64 [pass, layer, expert]: tokens of every expert.
    predicted         [pass][layer - 1]: experts that a prefetch expects of the layers after the first, or None.
    copy_from_tokens  a missed expert with fewer tokens is left to the host.
    """
    n_passes, n_layers, n_experts = counts.shape
    caches = [SlotCache(n_slots, n_experts) for _ in range(n_layers)]
    runs: list[list[LayerUse]] = []
    for number in range(n_passes):
        layers = []
        for layer, cache in enumerate(caches):
            use = _use(cache, counts[number, layer], copy_from_tokens)
            ahead = None
            if predicted is not None and layer + 1 < n_layers:
                ahead = caches[layer + 1].use(set(predicted[number][layer]))
                caches[layer + 1].coming |= set(ahead)
            layers.append(LayerUse(**use, ahead=ahead))
        runs.append(layers)
    return runs


def _use(cache: SlotCache, counts: Counts, copy_from_tokens: int) -> dict[str, tuple[int, ...]]:
    present = _present(counts)
    hosted = tuple(e for e in present if counts[e] < copy_from_tokens and not cache.holds(e))
    wanted = [e for e in present if e not in hosted]
    copied = cache.use(wanted)
    coming = tuple(e for e in wanted if e in cache.coming)
    cache.coming -= set(coming)
    resident = tuple(e for e in wanted if e not in coming and e not in copied)
    return {"resident": resident, "coming": coming, "copied": copied, "hosted": hosted}


def _present(counts: Counts) -> tuple[int, ...]:
    return tuple(np.flatnonzero(counts).tolist())
