"""Schedule policies: short stream programs, one module each; a new one is listed here under its YAML name."""

from __future__ import annotations

from sim.policies.chunked import chunked
from sim.policies.sequential import sequential
from sim.program import Policy

POLICIES: dict[str, Policy] = {"none": sequential, "chunked": chunked}
