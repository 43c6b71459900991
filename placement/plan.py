"""The placement: which expert each physical slot holds, and on which expert-parallel rank the slot lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scenarios.errors import PlacementError
from scenarios.placement_specs import SplitName

Int32Array = NDArray[np.int32]
FloatArray = NDArray[np.float64]

EMPTY = -1
"""The expert of a slot without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Expert replicas in physical slots; every layer has the same number of slots.

    expert_of_slot  int32[layer, slot]  logical expert held by each slot, or EMPTY: layers that share a budget of
                    replicas hold different numbers of copies, and an empty slot has no weights and gets no token.
    rank_of_slot    int32[layer, slot]  expert-parallel rank of each slot, non-decreasing within a layer. Ranks may hold
                    different numbers of slots, and none at all (a rank without experts of that layer).
    split           how tokens choose among the replicas of an expert.

    Raises PlacementError where shapes differ, an id is out of range, ranks decrease, or an expert has no slot.
    """

    expert_of_slot: Int32Array
    rank_of_slot: Int32Array
    n_experts: int
    n_ranks: int
    split: SplitName = "even"
    name: str

    def __post_init__(self) -> None:
        if self.n_experts < 1 or self.n_ranks < 1:
            raise PlacementError(f"a placement of {self.n_experts} experts on {self.n_ranks} ranks needs one of each")
        if self.split not in get_args(SplitName):
            raise PlacementError(f"split {self.split!r} is unknown; one of {', '.join(get_args(SplitName))}")
        for field, ids in (("expert_of_slot", range(EMPTY, self.n_experts)), ("rank_of_slot", range(self.n_ranks))):
            object.__setattr__(self, field, _read_only_ids(field, getattr(self, field), ids))
        _check_slots(self)

    @classmethod
    def from_slots(
        cls, expert_of_slot: ArrayLike, n_ranks: int, *, n_experts: int, name: str, split: SplitName = "even"
    ) -> Placement:
        """The placement in the engines' convention: of P slots, slot p lies on rank p // (P / n_ranks).

        Raises PlacementError as the constructor does, and where P is not divisible by `n_ranks`.
        """
        experts = np.asarray(expert_of_slot)
        if experts.ndim != 2:
            raise PlacementError(f"expert_of_slot must be [layer, slot], got shape {experts.shape}")
        n_slots = experts.shape[1]
        if n_ranks < 1 or n_slots % n_ranks:
            raise PlacementError(f"{n_slots} slots do not divide evenly over {n_ranks} ranks; give rank_of_slot")
        ranks = np.repeat(np.arange(n_ranks, dtype=np.int32), n_slots // n_ranks)
        return cls(
            expert_of_slot=experts,
            rank_of_slot=np.broadcast_to(ranks, experts.shape),
            n_experts=n_experts,
            n_ranks=n_ranks,
            split=split,
            name=name,
        )

    @property
    def n_layers(self) -> int:
        """Number of MoE layers."""
        return int(self.expert_of_slot.shape[0])

    @property
    def n_slots(self) -> int:
        """Slots of a layer, over all ranks."""
        return int(self.expert_of_slot.shape[1])

    @property
    def redundant_slots(self) -> int:
        """Slots of a layer beyond one per expert; some are empty where layers differ."""
        return self.n_slots - self.n_experts

    @property
    def filled(self) -> NDArray[np.bool_]:
        """Slots that hold an expert, bool[layer, slot]."""
        held: NDArray[np.bool_] = self.expert_of_slot != EMPTY
        return held

    @property
    def replica_slots(self) -> Int32Array:
        """Copies beyond one per expert, int32[layer]."""
        copies: Int32Array = self.filled.sum(axis=1, dtype=np.int32) - np.int32(self.n_experts)
        return copies

    def replica_counts(self) -> Int32Array:
        """Copies of each expert, int32[layer, expert]."""
        return _counts_per_layer(np.where(self.filled, self.expert_of_slot, self.n_experts), self.n_experts)

    def slots_per_rank(self) -> Int32Array:
        """Slots of each rank that hold an expert, int32[layer, rank]."""
        return _counts_per_layer(np.where(self.filled, self.rank_of_slot, self.n_ranks), self.n_ranks)

    def places_per_rank(self) -> Int32Array:
        """Slots of each rank, empty ones included, int32[layer, rank]."""
        return _counts_per_layer(self.rank_of_slot, self.n_ranks)

    def slots_of_expert(self) -> Int32Array:
        """Slots of each expert in ascending order, int32[layer, expert, max copies], padded with -1."""
        counts = self.replica_counts()
        slots = np.argsort(self.expert_of_slot, axis=1, kind="stable")
        first = np.cumsum(counts, axis=1) - counts + (self.n_slots - counts.sum(axis=1, keepdims=True))
        layer, place = np.nonzero(np.take_along_axis(self.filled, slots, axis=1))  # empty slots are sorted first
        expert = self.expert_of_slot[layer, slots[layer, place]]
        table = np.full((*counts.shape, int(counts.max())), -1, dtype=np.int32)
        table[layer, expert, place - first[layer, expert]] = slots[layer, place]
        return table

    def duplicate_slots(self) -> Int32Array:
        """Wasted slots, int32[layer]: those whose expert has an earlier slot on the same rank."""
        own = self.rank_of_slot.astype(np.int64) * self.n_experts + self.expert_of_slot
        pairs = np.sort(np.where(self.filled, own, -1 - np.arange(self.n_slots)), axis=1)
        duplicates: Int32Array = (np.diff(pairs, axis=1) == 0).sum(axis=1, dtype=np.int32)
        return duplicates


def rank_loads(placement: Placement, loads: FloatArray) -> FloatArray:
    """Load of each rank [unit of `loads`], float64[layer, rank], under even split: each copy gets load / copies.

    `loads` is float[layer, expert]. Raises PlacementError where it does not fit the placement.
    """
    expected = (placement.n_layers, placement.n_experts)
    if loads.shape != expected:
        raise PlacementError(f"loads have shape {loads.shape}, the placement has {expected} [layer, expert]")
    share = np.take_along_axis(loads / placement.replica_counts(), placement.expert_of_slot, axis=1) * placement.filled
    cells = placement.rank_of_slot + placement.n_ranks * np.arange(placement.n_layers)[:, None]
    n_cells = placement.n_layers * placement.n_ranks
    totals: FloatArray = np.bincount(cells.ravel(), weights=share.ravel(), minlength=n_cells).astype(np.float64)
    return totals.reshape(-1, placement.n_ranks)


def imbalance(loads_per_rank: FloatArray) -> FloatArray:
    """Largest over mean load, float64[layer], at least 1; a layer without any load counts as balanced (1)."""
    mean = loads_per_rank.mean(axis=1)
    peak = loads_per_rank.max(axis=1)
    ratio: FloatArray = np.divide(peak, mean, out=np.ones_like(mean), where=mean > 0)
    return ratio


def _read_only_ids(field: str, values: ArrayLike, allowed: range) -> Int32Array:
    """An own int32 copy of a table of ids within `allowed`."""
    ids = np.asarray(values)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0:
        raise PlacementError(f"{field} must be a table of integers [layer, slot], got {ids.dtype} {ids.shape}")
    outside = (ids < allowed.start) | (ids >= allowed.stop)
    if outside.any():
        layer, slot = (int(i) for i in np.argwhere(outside)[0])
        found = int(ids[layer, slot])
        raise PlacementError(f"{field}: layer {layer}, slot {slot} holds {found}, not in 0..{allowed.stop - 1}")
    own = ids.astype(np.int32)
    own.setflags(write=False)
    return own


def _check_slots(placement: Placement) -> None:
    experts, ranks = placement.expert_of_slot, placement.rank_of_slot
    if experts.shape != ranks.shape:
        raise PlacementError(f"expert_of_slot has shape {experts.shape}, rank_of_slot {ranks.shape}")
    falls = np.diff(ranks, axis=1) < 0
    if falls.any():
        layer, slot = (int(i) for i in np.argwhere(falls)[0])
        raise PlacementError(f"rank_of_slot decreases after slot {slot} of layer {layer}; order the slots by rank")
    missing = placement.replica_counts() == 0
    if missing.any():
        layer, expert = (int(i) for i in np.argwhere(missing)[0])
        raise PlacementError(
            f"expert {expert} of layer {layer} has no slot ({int(missing.sum())} such experts in all); "
            f"every layer needs each of its {placement.n_experts} experts at least once"
        )


def _counts_per_layer(ids: Int32Array, n_ids: int) -> Int32Array:
    """How often each id 0..n_ids-1 occurs in each layer, int32[layer, id]; id n_ids is not counted."""
    n_layers, width = ids.shape[0], n_ids + 1
    cells = ids + width * np.arange(n_layers)[:, None]
    counts = np.bincount(cells.ravel(), minlength=n_layers * width).reshape(n_layers, width)
    return counts[:, :n_ids].astype(np.int32)
