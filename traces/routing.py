"""The routing trace: which experts each token visited in each MoE layer, as captured from a real kernel or made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError

Phase = Literal["decode", "prefill", "mixed"]
Ids = NDArray[np.uint8] | NDArray[np.uint16]


def id_dtype(n_experts: int, *, variable_k: bool = False) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """Smallest dtype that holds the expert ids, and the padding id (its maximum) where k varies."""
    small = n_experts <= (255 if variable_k else 256)
    return np.dtype(np.uint8) if small else np.dtype(np.uint16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a trace comes from. `notes` lists what an importer found and changed, one sentence each."""

    model: str
    source: str
    kind: Literal["captured", "synthetic"]
    licence: str = "not stated"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTrace:
    """Routing of `n_tokens` tokens in sequence order.

    ids        uint8 or uint16 [layer, k, token], MoE layers only, logical expert ids; may be memory-mapped.
               With `variable_k`, the dtype's maximum marks an unused place.
    offsets    int64 [sequence + 1]: sequence s holds tokens offsets[s]:offsets[s+1].
    positions  int32 [token]: position of the token in its request (0 = first prompt token).
    weights    float16 [layer, k, token] gate weights, or None.
    labels     one domain name per sequence, or empty.
    moe_layers model layer number of each row of `ids`.
    weight_ordered  the k ids of a token stand in descending order of gate weight.

    Raises TraceError where shapes disagree, offsets do not cover the tokens, or an id is out of range.
    """

    ids: Ids
    n_experts: int
    offsets: NDArray[np.int64]
    positions: NDArray[np.int32]
    moe_layers: tuple[int, ...]
    phase: Phase
    provenance: Provenance
    weights: NDArray[np.float16] | None = None
    labels: tuple[str, ...] = ()
    weight_ordered: bool = False
    variable_k: bool = False
    check_ids: bool = field(default=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_shapes(self)
        if self.check_ids:
            _check_id_range(self)
        for array in (self.ids, self.offsets, self.positions, self.weights):
            if array is not None:
                array.setflags(write=False)

    @property
    def n_layers(self) -> int:
        """Number of MoE layers."""
        return int(self.ids.shape[0])

    @property
    def top_k(self) -> int:
        """Routed experts per token (the largest number, where k varies)."""
        return int(self.ids.shape[1])

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all sequences."""
        return int(self.ids.shape[2])

    @property
    def n_sequences(self) -> int:
        """Number of sequences (requests)."""
        return len(self.offsets) - 1

    @property
    def padding_id(self) -> int | None:
        """Id that marks an unused place of a token's top-k, or None where k is fixed."""
        return int(np.iinfo(self.ids.dtype).max) if self.variable_k else None


def _check_shapes(trace: RoutingTrace) -> None:
    ids, offsets = trace.ids, trace.offsets
    if ids.ndim != 3 or ids.dtype not in (np.uint8, np.uint16):
        raise TraceError(f"ids must be uint8 or uint16 [layer, k, token], got {ids.dtype} {ids.shape}")
    if 0 in ids.shape:
        raise TraceError(f"the trace is empty: ids have shape {ids.shape} [layer, k, token]")
    if trace.n_experts < 1 or trace.top_k > trace.n_experts:
        raise TraceError(f"top-{trace.top_k} of {trace.n_experts} experts is impossible")
    if len(trace.moe_layers) != trace.n_layers:
        raise TraceError(f"{trace.n_layers} layers of ids, but {len(trace.moe_layers)} layer numbers")
    if trace.positions.shape != (trace.n_tokens,):
        raise TraceError(f"positions have shape {trace.positions.shape}, expected ({trace.n_tokens},)")
    if trace.weights is not None and (trace.weights.shape != ids.shape or trace.weights.dtype != np.float16):
        raise TraceError(f"weights are {trace.weights.dtype} {trace.weights.shape}, not float16 like ids {ids.shape}")
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != trace.n_tokens:
        raise TraceError(f"offsets must run from 0 to the {trace.n_tokens} tokens of the trace")
    if (np.diff(offsets) <= 0).any():
        raise TraceError(f"sequence {int(np.argmax(np.diff(offsets) <= 0))} is empty or its offsets decrease")
    if trace.labels and len(trace.labels) != trace.n_sequences:
        raise TraceError(f"{len(trace.labels)} labels for {trace.n_sequences} sequences")


def _check_id_range(trace: RoutingTrace) -> None:
    if not trace.variable_k and trace.n_experts > np.iinfo(trace.ids.dtype).max:
        return  # every value of the dtype is an expert
    for layer, rows in enumerate(trace.ids):
        bad = rows >= trace.n_experts
        if trace.padding_id is not None:
            bad &= rows != trace.padding_id
        if bad.any():
            k, token = (int(i) for i in np.argwhere(bad)[0])
            raise TraceError(
                f"layer {layer}, token {token}: expert id {int(rows[k, token])} is out of range for "
                f"{trace.n_experts} experts; physical (slot) ids need the engine's map to logical ids"
            )
