"""Continuous batching in time: requests arrive, join the batch between two steps, and leave when they are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from scenarios.errors import ScenarioError

Times = NDArray[np.float64]


class ServedPrices(Protocol):
    """Time of the two kinds of passes."""

    def prefill_s(self, request: int) -> float:
        """The request's prompt by itself [s]."""

    def decode_s(self, requests: Sequence[int], written: Sequence[int]) -> float:
        """One token of each of these requests, which have written so many [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Times from the begin on [s], float64[request]: of the first token and of the last."""

    arrival_s: Times
    first_token_s: Times
    done_s: Times
    answer_tokens: NDArray[np.int64]

    @property
    def total_s(self) -> float:
        """When the last request is done [s]."""
        return float(self.done_s.max())

    @property
    def tpot_s(self) -> Times:
        """Time per output token after the first, float64[request] [s]."""
        tpot: Times = (self.done_s - self.first_token_s) / np.maximum(self.answer_tokens - 1, 1)
        return tpot

    @property
    def latency_s(self) -> Times:
        """From arrival to the last token, float64[request] [s]."""
        latency: Times = self.done_s - self.arrival_s
        return latency


def serve(arrival_s: Times, answer_tokens: NDArray[np.int64], max_batch: int, prices: ServedPrices) -> Served:
    """Requests served in order of arrival (ascending), at most `max_batch` at once.

    Between two steps every request that has arrived and finds a place is prefilled, which gives its first token; then
    all requests of the batch write one token. Raises ScenarioError where arrivals decrease or an answer has fewer than
    two tokens.
    """
    if (np.diff(arrival_s) < 0).any() or max_batch < 1:
        raise ScenarioError(f"arrivals must not decrease and the batch hold at least one request, not {max_batch}")
    if (answer_tokens < 2).any():
        raise ScenarioError(f"an answer of {answer_tokens.min()} tokens is over after the prefill; give at least 2")
    env = simpy.Environment()
    served = Served(
        arrival_s=arrival_s,
        first_token_s=np.full(len(arrival_s), np.nan),
        done_s=np.full(len(arrival_s), np.nan),
        answer_tokens=answer_tokens,
    )
    env.process(_server(env, served, max_batch, prices))
    env.run()
    return served


def _server(
    env: simpy.Environment, served: Served, max_batch: int, prices: ServedPrices
) -> Generator[simpy.Event, None, None]:
    waiting = deque(range(len(served.arrival_s)))
    batch: dict[int, int] = {}
    while waiting or batch:
        if not batch and served.arrival_s[waiting[0]] > env.now:
            yield env.timeout(served.arrival_s[waiting[0]] - env.now)
        room = max_batch - len(batch)
        while waiting and room and (not batch or served.arrival_s[waiting[0]] <= env.now):
            request, room = waiting.popleft(), room - 1
            yield env.timeout(prices.prefill_s(request))
            served.first_token_s[request], batch[request] = env.now, 1
        yield env.timeout(prices.decode_s(list(batch), list(batch.values())))
        for request in list(batch):
            batch[request] += 1
            if batch[request] >= served.answer_tokens[request]:
                served.done_s[request] = env.now
                del batch[request]
