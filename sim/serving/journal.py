"""Served loads that survive an interruption: times that were priced go to disk, and a rerun takes them from there.

A load is a function of these times alone, so that a rerun which reads what was priced, and prices what was not, ends
with the same numbers to the last bit, whatever else acts on the engines. `unfinished/` of the folder of results holds
two files a plan: KEY.times, float64[priced], and KEY.json, the metrics of the requests that were done.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import MoesimError
from scenarios.files import write_text
from sim.serving.engine import IterationPrices
from sim.serving.ranks import RankLoad

EVERY_S, SHARE = 1.0, 20
"""Wall time between two writes: at least so long, and so many times as long as the last one took."""


@dataclass(slots=True)
class Journal:
    """Times that were priced, in the order in which they were asked for.

    partial  what is known of the load so far, as JSON; None where there is nothing yet.
    """

    path: Path
    partial: Callable[[], dict[str, Any] | None] | None = None
    _known: NDArray[np.float64] = field(init=False)
    _read: int = 0
    _new: array[float] = field(default_factory=lambda: array("d"))
    _due_s: float = field(default_factory=lambda: monotonic() + EVERY_S)

    def __post_init__(self) -> None:
        raw = self.path.read_bytes() if self.path.exists() else b""
        known = np.frombuffer(raw[: len(raw) // 8 * 8])
        wrong = np.flatnonzero(~(np.isfinite(known) & (known > 0)))
        self._known = known[: wrong[0]] if len(wrong) else known
        if len(raw) != self._known.nbytes:  # what a crash left of the last write
            os.truncate(self.path, self._known.nbytes)

    @classmethod
    def of(cls, folder: Path, key: str) -> Journal:
        """The journal of a plan by its key. Raises MoesimError where the folder cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MoesimError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from None
        return cls(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.times")

    def priced(self, price: Callable[[], float]) -> float:
        """The next time: as an earlier run had it, or by `price`."""
        if self._read < len(self._known):
            self._read += 1
            return float(self._known[self._read - 1])
        time_s = price()
        self._new.append(time_s)
        if monotonic() > self._due_s:
            self.write()
        return time_s

    def write(self) -> None:
        """Bring to disk what is new."""
        began_s = monotonic()
        with self.path.open("ab") as file:
            self._new.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        del self._new[:]
        content = None if self.partial is None else self.partial()
        if content is not None:
            write_text(json.dumps(content, indent=2) + "\n", self.path.with_suffix(".json"))
        now_s = monotonic()
        self._due_s = now_s + max(EVERY_S, SHARE * (now_s - began_s))


@dataclass(frozen=True, slots=True)
class JournaledPrices:
    """Prices whose iterations are in a journal; stretches are few and priced again."""

    prices: IterationPrices
    journal: Journal

    def iteration_s(self, loads: Sequence[RankLoad]) -> float:
        """Time of an iteration [s]."""
        return self.journal.priced(lambda: self.prices.iteration_s(loads))

    def stretch_s(self, loads: Sequence[RankLoad], n: int) -> NDArray[np.float64]:
        """Times of `n` iterations in which all ranks but decode [s]."""
        return self.prices.stretch_s(loads, n)
