"""Which part of a prompt a cache of prefixes holds already: leading blocks that earlier prompts had."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 512
"""Tokens of a block of Mooncake's `hash_ids` (FAST 25)."""


@dataclass(slots=True)
class PrefixCache:
    """Blocks by their ids, which stand for all tokens up to their end; of `n_blocks` the least recent one leaves."""

    n_blocks: int | None
    _held: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def visit(self, blocks: Sequence[int]) -> int:
        """How many leading blocks of a prompt are there; all of them are afterwards, the first ones the longest."""
        hits = 0
        while hits < len(blocks) and blocks[hits] in self._held:
            hits += 1
        for block in reversed(blocks):
            self._held[block] = None
            self._held.move_to_end(block)
        while self.n_blocks is not None and len(self._held) > self.n_blocks:
            self._held.popitem(last=False)
        return hits
