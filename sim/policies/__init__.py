"""Schedule policies: short stream programs, one module each; a new one is listed here under its YAML name."""

from __future__ import annotations

from sim.policies.cgopipe import cgopipe, vslpipe
from sim.policies.chunked import chunked
from sim.policies.flexgen import flexgen, prompts
from sim.policies.persistent import persistent
from sim.policies.prefetch import prefetch
from sim.policies.ring import ring
from sim.policies.sequential import sequential
from sim.policies.tiles import tiles
from sim.policies.training import TRAINING
from sim.policies.two_batch import two_batch
from sim.policies.two_batch_decode import two_batch_decode
from sim.policies.two_batch_prefill import two_batch_prefill
from sim.program import Policy, Tiling

__all__ = ["MICROBATCHED", "POLICIES", "SPLIT_ATTENTION", "TILED", "TRAINING"]

POLICIES: dict[str, Policy] = {
    "none": sequential,
    "chunked": chunked,
    "two-batch": two_batch,
    "two-batch-prefill": two_batch_prefill,
    "two-batch-decode": two_batch_decode,
    "tiles": tiles,
    "persistent": persistent,
    "prefetch": prefetch,
}

STREAMS: dict[str, Policy] = {
    "cgopipe": cgopipe,
    "fastdecode": cgopipe,
    "flexgen": flexgen,
    "flexgen-cpu": flexgen,
    "vslpipe": vslpipe,
    "ring": ring,
}
"""Policies of weights that stream from the host's memory; what differs beside them is which works a step has."""

PROMPTS: dict[str, Policy] = {"cgopipe": prompts, "fastdecode": prompts, "flexgen": flexgen, "flexgen-cpu": flexgen}
"""Policies of prefill, where it is a pass of its own."""

MICROBATCHED = frozenset({"two-batch", "two-batch-prefill", "two-batch-decode"})
"""Policies whose steps come in microbatches: all of the model in parts, not its experts alone."""

SPLIT_ATTENTION = frozenset({"two-batch-decode"})
"""Policies that issue the projections before the core of attention as a work of their own."""

TILED: dict[str, Tiling] = {"tiles": "columns", "persistent": "rows"}
"""Policies of fused kernels, whose chunks are tiles of one kernel: of rows, or of rows and then of columns."""
