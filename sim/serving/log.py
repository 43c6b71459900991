"""What an engine did, a row an iteration or a stretch of like ones, in 48 bytes each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROW = np.dtype(
    [
        ("end_s", "f8"),
        ("busy_s", "f8"),
        ("used_blocks", "f8"),
        ("n", "i4"),
        ("decoding", "i4"),
        ("prompt_tokens", "i4"),
        ("waiting", "i4"),
        ("peak_blocks", "i4"),
        ("most_tokens", "i4"),
    ]
)
"""A row: its end, time and number of iterations; requests decoding and prompt tokens of each, requests waiting, blocks
in use (mean over its time, and most), tokens of the fullest rank. Sums over ranks, but for the last one."""
FOLDED = 4096  # rows that wait as Python values
COARSE = 64  # iterations of a row at most where few bytes count: a view over time must not be coarser than that


@dataclass(slots=True)
class Log:
    """Rows in order of time; `most` iterations in one, where they are of a stretch."""

    most: int = 1
    _open: list[tuple[float, ...]] = field(default_factory=list)
    _folded: list[NDArray[Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self._folded)) + len(self._open)

    def append(self, row: tuple[float, ...]) -> None:
        """Note an iteration; fields as in `ROW`."""
        self._open.append(row)
        if len(self._open) >= FOLDED:
            self._fold()

    def stretch(self, begin_s: float, times_s: NDArray[np.float64], blocks: NDArray[np.int64], counts: Counts) -> None:
        """Note iterations that begin one after another and differ in `times_s` and `blocks` alone, both [iteration]."""
        ends_s = begin_s + np.cumsum(times_s)
        for first in range(0, len(times_s), self.most):
            part = slice(first, first + self.most)
            one_s, used = times_s[part], blocks[part]
            total_s, last = float(one_s.sum()), first + len(one_s) - 1
            mean = float(one_s @ used) / total_s if total_s else float(used.mean())
            decoding, waiting, most = counts
            row = (float(ends_s[last]), total_s, mean, len(one_s), decoding, 0, waiting, int(used.max()), most)
            self.append(row)

    def array(self) -> NDArray[Any]:
        """All rows so far, `ROW`[row]."""
        self._fold()
        if len(self._folded) > 1:
            self._folded = [np.concatenate(self._folded)]
        return self._folded[0] if self._folded else np.empty(0, ROW)

    def _fold(self) -> None:
        if self._open:
            self._folded.append(np.array(self._open, ROW))
            self._open = []


Counts = tuple[int, int, int]
"""Of a stretch: requests decoding, requests waiting, tokens of the fullest rank."""
