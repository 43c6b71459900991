"""Routing as an engine or a research script wrote it: not yet checked, layers and padding as found in the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from traces.routing import Phase

Identity = Literal["requests", "steps", "stream"]
RawIds = NDArray[np.integer[Any]]
MAX_EXPERTS = 32767


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check saw: `count` cases, a sentence about them, and whether the importer changed data because of it.

    A `fatal` finding makes the trace unusable; its message then ends with the remedy.
    """

    check: str
    count: int
    message: str
    changed: bool = False
    fatal: bool = False

    def note(self) -> str:
        """One sentence for `Provenance.notes`."""
        return f"{self.check}: {self.message} [count {self.count}{', changed' if self.changed else ''}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What the user knows about a file and the file does not say.

    n_experts         routed experts of a layer, where the format lacks it (checked against the file where not).
    top_k, n_layers   routed experts per token and hidden layers, for files that are flat lists of numbers.
    moe_layers        model layer numbers that hold experts; the others are left out.
    physical_to_logical  JSON or .npy file [layer][slot] -> expert, where the file holds slot ids.
    deinterleave      sequences of a micro-batch whose rows alternate; 1: rows are in order, do not test it.
    sequence_tokens   tokens of a sequence, where a file joins several without saying where they end.
    keep_warmup       keep runs of identical rows instead of leaving them out.
    """

    model: str = "unknown"
    source: str | None = None
    licence: str = "not stated"
    n_experts: int | None = None
    top_k: int | None = None
    n_layers: int | None = None
    moe_layers: tuple[int, ...] | None = None
    physical_to_logical: Path | None = None
    deinterleave: int | None = None
    sequence_tokens: int | None = None
    keep_warmup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Rows of a file, before checks.

    ids        integer [layer, k, token]; -1 marks an unused place.
    offsets    int64 [sequence + 1]; positions int64 [token].
    layers     model layer number of each row, or None where the file does not say.
    identity   a sequence is a request, a step of the engine (tokens of many requests), or a stream without marks.
    top_k      experts per token, where the file states it.
    ordered    the source states that the ids of a token stand in descending order of weight.
    findings   what the reader itself found or changed.
    """

    ids: RawIds
    offsets: NDArray[np.int64]
    positions: NDArray[np.int64]
    layers: tuple[int, ...] | None
    phase: Phase
    identity: Identity
    n_experts: int | None = None
    top_k: int | None = None
    weights: NDArray[np.float16] | None = None
    ordered: bool = False
    labels: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
