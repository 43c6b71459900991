"""Schedule policies: short stream programs, one module each; a new one is listed here under its YAML name."""

from __future__ import annotations

from sim.policies.chunked import chunked
from sim.policies.prefetch import prefetch
from sim.policies.sequential import sequential
from sim.policies.two_batch import two_batch
from sim.program import Policy

POLICIES: dict[str, Policy] = {"none": sequential, "chunked": chunked, "two-batch": two_batch, "prefetch": prefetch}

MICROBATCHED = frozenset({"two-batch"})
"""Policies whose steps come in microbatches: all of the model in parts, not its experts alone."""
