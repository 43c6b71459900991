"""One attention rank of an engine: its queue, its batch, its KV cache, counted rather than listed.

A request that decodes changes by one token an iteration, so that sums need no loop over requests: it leaves at an
iteration that is known when it begins to decode, and takes a new block of the KV cache every `block_tokens` iterations.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scenarios.serving_specs import ServingSpec

UNBOUNDED = 1 << 30
Positions = NDArray[np.int64]


class RankLoad(NamedTuple):
    """What a rank does in one iteration.

    decoding  requests that write a token; context_tokens: what these tokens attend to, themselves included, summed.
    prompt_tokens  tokens of prompts; attended_pairs: what these attend to, summed; finishing: prompts that end here.
    """

    decoding: int = 0
    context_tokens: int = 0
    prompt_tokens: int = 0
    attended_pairs: int = 0
    finishing: int = 0


@dataclass(slots=True)
class _Prompt:
    """A prompt (with what a pre-empted request had written) on its way; `held` tokens of it are in the cache."""

    request: int
    length: int
    held: int


@dataclass(slots=True)
class _Decoding:
    """A request since it began to decode: at iteration `since` the cache held `context` tokens and it had `written`."""

    request: int
    since: int
    context: int
    written: int
    end: int
    gone: bool = False


@dataclass(slots=True)
class Rank:
    """State of a rank; `plan` decides an iteration, `finish` carries it out. Lengths are those of all requests."""

    spec: ServingSpec
    n_blocks: int
    input_tokens: list[int]
    output_tokens: list[int]
    waiting: deque[_Prompt] = field(default_factory=deque)
    prompts: deque[_Prompt] = field(default_factory=deque)
    n_decoding: int = 0
    context_tokens: int = 0
    free_blocks: int = field(init=False)
    n_preempted: int = 0
    waiting_tokens: int = 0
    _due: list[int] = field(init=False)
    _order: list[_Decoding] = field(default_factory=list)
    _ends: list[tuple[int, int, _Decoding]] = field(default_factory=list)
    _taken: list[tuple[_Prompt, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free_blocks = self.n_blocks
        self._due = [0] * self.spec.block_tokens

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.n_decoding or self.prompts or self.waiting)

    @property
    def n_tokens(self) -> int:
        """Tokens that it holds or has yet to take in: what the router balances."""
        return self.context_tokens + self.waiting_tokens

    def arrive(self, request: int) -> None:
        """A request joins the queue."""
        self.waiting.append(_Prompt(request, self.input_tokens[request], 0))
        self.waiting_tokens += self.input_tokens[request]

    def plan(self, iteration: int) -> RankLoad:
        """What the rank does in this iteration: blocks for tokens to be written, then prompts within the budget."""
        self._make_room(iteration)
        decoding = self.n_decoding
        budget, pairs, finishing = self.spec.token_budget - decoding, 0, 0
        self._taken = []
        self._admit()
        for prompt in self.prompts:
            taken = min(budget, prompt.length - prompt.held)
            budget -= taken
            pairs += taken * prompt.held + taken * (taken + 1) // 2
            finishing += prompt.held + taken == prompt.length
            self._taken.append((prompt, taken))
            if budget == 0:
                break
        used = self.spec.token_budget - decoding - budget
        return RankLoad(decoding, self.context_tokens + decoding, used, pairs, finishing)

    def finish(self, iteration: int) -> tuple[list[int], list[int]]:
        """Requests that wrote their first token in this iteration, and those that wrote their last one."""
        self.context_tokens += self.n_decoding
        first: list[int] = []
        last = self._leave(iteration)
        for prompt, taken in self._taken:
            prompt.held += taken
            self.waiting_tokens -= taken
            if prompt.held < prompt.length:
                continue
            self.prompts.popleft()
            first.append(prompt.request)
            if not self._begin_to_decode(prompt, iteration + 1):
                last.append(prompt.request)
        self._taken = []
        return first, last

    def tokens(self, iteration: int) -> tuple[Positions, Positions]:
        """(request, position) of the tokens of a planned iteration: of those that decode, and of prompts.

        int64[2, token] each.
        """
        there = [one for one in self._order if not one.gone]
        decoding = [[one.request for one in there], [one.context + iteration - one.since for one in there]]
        prompts = [
            np.stack([np.full(taken, prompt.request), np.arange(prompt.held, prompt.held + taken)])
            for prompt, taken in self._taken
        ]
        return np.array(decoding, np.int64), np.concatenate([np.empty((2, 0), np.int64), *prompts], axis=1)

    def _make_room(self, iteration: int) -> None:
        """Blocks for tokens of decoding requests; where they are short, the last to have come is pre-empted."""
        size = self.spec.block_tokens
        while self._due[iteration % size] > self.free_blocks:
            victim = self._order.pop()
            while victim.gone:
                victim = self._order.pop()
            self._preempt(victim, iteration)
        self.free_blocks -= self._due[iteration % size]

    def _preempt(self, one: _Decoding, iteration: int) -> None:
        """Drop a request's cache; it comes back as a prompt with all that it has written."""
        steps = iteration - one.since
        self._remove(one, one.context + steps)
        written = one.written + steps
        length = self.input_tokens[one.request] + written
        self.waiting.appendleft(_Prompt(one.request, length, 0))
        self.waiting_tokens += length
        self.n_preempted += 1

    def _leave(self, iteration: int) -> list[int]:
        left: list[int] = []
        while self._ends and self._ends[0][0] == iteration:
            one = heappop(self._ends)[2]
            if not one.gone:
                self._remove(one, one.context + iteration - one.since + 1)
                left.append(one.request)
        return left

    def _remove(self, one: _Decoding, context: int) -> None:
        """Take a request whose cache holds so many tokens out of the counts."""
        one.gone = True
        self.n_decoding -= 1
        self.context_tokens -= context
        self._due[(one.since - one.context) % self.spec.block_tokens] -= 1
        self.free_blocks += self._blocks(context)

    def quiet(self, iteration: int) -> int:
        """Iterations from this one on in which it does nothing but decode: nobody comes or leaves, blocks suffice."""
        if self.prompts or self.waiting:
            return 0
        if not self.n_decoding:
            return UNBOUNDED
        while self._ends[0][2].gone:
            heappop(self._ends)
        return min(self._ends[0][0] - iteration, self.free_blocks // self.n_decoding * self.spec.block_tokens)

    def load(self) -> RankLoad:
        """What it does in an iteration in which it but decodes."""
        return RankLoad(self.n_decoding, self.context_tokens + self.n_decoding)

    def pass_by(self, iteration: int, n: int) -> NDArray[np.int64]:
        """Carry out `n` quiet iterations; blocks in use after each, int64[iteration]."""
        due = np.array(self._due)[(iteration + np.arange(n)) % self.spec.block_tokens]
        used: NDArray[np.int64] = self.n_blocks - self.free_blocks + np.cumsum(due)
        self.free_blocks = self.n_blocks - int(used[-1])
        self.context_tokens += n * self.n_decoding
        return used

    def _admit(self) -> None:
        """Prompts that may begin: within batch and budget, and with blocks for all of their tokens."""
        waited = sum(prompt.length - prompt.held for prompt in self.prompts)
        room = self.spec.token_budget - self.n_decoding
        while self.waiting and waited < room and self.n_decoding + len(self.prompts) < self.spec.max_requests:
            blocks = self._blocks(self.waiting[0].length)
            if blocks > self.free_blocks:
                return
            self.free_blocks -= blocks
            prompt = self.waiting.popleft()
            prompt.held = min(int(prompt.length * self.spec.cached_frac), prompt.length - 1)
            self.waiting_tokens -= prompt.held
            self.prompts.append(prompt)
            waited += prompt.length - prompt.held

    def _begin_to_decode(self, prompt: _Prompt, iteration: int) -> bool:
        """Whether the request has more to write than the token that its prompt gave."""
        request = prompt.request
        written = prompt.length - self.input_tokens[request] + 1
        left = self.output_tokens[request] - written
        if left == 0:
            self.free_blocks += self._blocks(prompt.length)
            return False
        one = _Decoding(request, iteration, prompt.length, written, iteration + left - 1)
        self.n_decoding += 1
        self.context_tokens += prompt.length
        self._due[(iteration - prompt.length) % self.spec.block_tokens] += 1
        if len(self._order) > 2 * self.spec.max_requests:
            self._order = [other for other in self._order if not other.gone]
        self._order.append(one)
        heappush(self._ends, (one.end, request, one))
        return True

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.spec.block_tokens)
