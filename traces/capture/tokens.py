"""Tokens of texts: byte pairs that occur most, merged (BPE, Sennrich et al., arXiv 1508.07909), in numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import ScenarioError

BYTES = 256
SEPARATOR = 0  # a zero byte stands between documents and is never merged
Tokens = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens 0 to 255 are bytes; token 256 + i is the pair `merges[i]`, int [merge, 2], of earlier tokens.

    Raises ScenarioError where a pair names a later token or there are more than uint16 holds.
    """

    merges: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.merges.ndim != 2 or self.merges.shape[1] != 2 or len(self.merges) > (1 << 16) - BYTES:
            raise ScenarioError(f"merges must be [merge, 2] with at most 65280 rows, got {self.merges.shape}")
        if (self.merges >= BYTES + np.arange(len(self.merges))[:, None]).any() or (self.merges < 0).any():
            raise ScenarioError("a merge names a token that comes after it")
        self.merges.setflags(write=False)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return BYTES + len(self.merges)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokens of the texts, one after the other, with a separator after each."""
        tokens = joined_bytes(texts)
        for number, (left, right) in enumerate(self.merges.tolist()):
            tokens = merged(tokens, left, right, BYTES + number)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens; broken characters become replacement marks."""
        parts = [bytes([number]) for number in range(BYTES)]
        for left, right in self.merges.tolist():
            parts.append(parts[left] + parts[right])
        return b"".join(parts[token] for token in tokens).decode("utf-8", errors="replace")


def learn_vocabulary(texts: Sequence[str], size: int) -> Vocabulary:
    """A vocabulary of at most `size` tokens: the most frequent pair of neighbours is merged, again and again.

    Of equally frequent pairs the one of the smallest numbers is taken; pairs that occur once are not.
    """
    tokens = joined_bytes(texts)
    merges: list[tuple[int, int]] = []
    while BYTES + len(merges) < size and len(tokens) > 1:
        left, right, count = most_frequent_pair(tokens, size)
        if count < 2:
            break
        tokens = merged(tokens, left, right, BYTES + len(merges))
        merges.append((left, right))
    return Vocabulary(merges=np.array(merges, np.int64).reshape(-1, 2))


def joined_bytes(texts: Sequence[str]) -> Tokens:
    """UTF-8 bytes of the texts, zero bytes taken out, with a separator after each text."""
    raw = b"".join(text.encode().replace(b"\0", b"") + b"\0" for text in texts)
    return np.frombuffer(raw, np.uint8).astype(np.uint16)


def most_frequent_pair(tokens: Tokens, size: int) -> tuple[int, int, int]:
    """The two tokens that most often stand beside each other, and how often; separators are not counted."""
    pairs = tokens[:-1].astype(np.int64) * size + tokens[1:]
    pairs = pairs[(tokens[:-1] != SEPARATOR) & (tokens[1:] != SEPARATOR)]
    if not len(pairs):
        return 0, 0, 0
    counts = np.bincount(pairs)
    best = int(counts.argmax())
    return best // size, best % size, int(counts[best])


def merged(tokens: Tokens, left: int, right: int, new: int) -> Tokens:
    """The tokens with every `left, right` replaced by `new`, from the left on."""
    at = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
    if left == right:
        at = _every_other(at)
    if not len(at):
        return tokens
    result = tokens.copy()
    result[at] = new
    return np.delete(result, at + 1)


def _every_other(at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each run of neighbouring places the first, third, ...: a token belongs to one pair."""
    if not len(at):
        return at
    starts = np.r_[True, np.diff(at) != 1]
    first = np.maximum.accumulate(np.where(starts, at, 0))
    return at[(at - first) % 2 == 0]
