"""Expert loads without tokens: what engines write when they only count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.routing import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCounts:
    """Selections per expert: no tokens, no order inside a step, hence no locality and no affinity.

    counts      int64 [step or sequence, layer, expert], MoE layers only, logical experts.
    axis        what the first axis counts.
    moe_layers  model layer number of each layer.

    Raises TraceError where shapes disagree or a count is negative.
    """

    counts: NDArray[np.int64]
    n_experts: int
    moe_layers: tuple[int, ...]
    axis: Literal["step", "sequence"]
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.counts.ndim != 3 or self.counts.dtype != np.int64 or 0 in self.counts.shape:
            raise TraceError(
                f"counts must be int64 [{self.axis}, layer, expert] and not empty, "
                f"got {self.counts.dtype} {self.counts.shape}"
            )
        if self.counts.shape[1:] != (len(self.moe_layers), self.n_experts):
            raise TraceError(
                f"counts have shape {self.counts.shape}, but there are {len(self.moe_layers)} layer numbers "
                f"and {self.n_experts} experts"
            )
        if (self.counts < 0).any():
            raise TraceError(f"a count is negative: {int(self.counts.min())}")
        self.counts.setflags(write=False)

    def per_expert(self) -> NDArray[np.int64]:
        """Selections of each expert over the whole recording, int64 [layer, expert]."""
        return np.asarray(self.counts.sum(axis=0), dtype=np.int64)
