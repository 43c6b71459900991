"""The engine in time: requests arrive at ranks, and all ranks step together, as expert parallelism makes them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from scenarios.errors import MemoryInfeasible
from scenarios.serving_specs import ServingSpec
from sim.serving.ranks import Rank, RankLoad
from traces.requests import RequestTrace


class IterationPrices(Protocol):
    """How long an iteration takes."""

    def iteration_s(self, loads: Sequence[RankLoad]) -> float:
        """Time of an iteration in which every rank does this [s]."""

    def stretch_s(self, loads: Sequence[RankLoad], n: int) -> NDArray[np.float64]:
        """Times of `n` iterations from this one on in which all ranks but decode, float64[n] [s].

        Contexts grow by a token a request. Equal to `iteration_s` of each to rounding.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What happened to every request and in every iteration.

    first_token_s, done_s  float64[request]: end of the iteration that wrote the first (last) token.
    end_s                  float64[iteration]; busy_s: how long each took.
    decoding, prompt_tokens, waiting, used_blocks  int64[iteration], sums over ranks; waiting: requests in queues.
    most_tokens            int64[iteration]: tokens of the fullest rank.
    """

    requests: RequestTrace
    first_token_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    busy_s: NDArray[np.float64]
    decoding: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    waiting: NDArray[np.int64]
    used_blocks: NDArray[np.int64]
    most_tokens: NDArray[np.int64]
    n_ranks: int
    n_blocks: int
    n_preempted: int


def serve(requests: RequestTrace, spec: ServingSpec, n_ranks: int, n_blocks: int, prices: IterationPrices) -> Served:
    """All requests, served by `n_ranks` ranks with a KV cache of `n_blocks` blocks each.

    Raises MemoryInfeasible where a request is longer than the KV cache of a rank.
    """
    longest = int(np.argmax(requests.input_tokens + requests.output_tokens))
    needed = int(requests.input_tokens[longest] + requests.output_tokens[longest])
    if -(-needed // spec.block_tokens) > n_blocks:
        raise MemoryInfeasible(
            f"request {longest} of {requests.source} has {needed:,} tokens, and the KV cache of a rank holds "
            f"{n_blocks * spec.block_tokens:,}; levers: fewer weights on a device, a smaller kv_dtype, shorter requests"
        )
    env = simpy.Environment()
    engine = _Engine(requests, spec, n_ranks, n_blocks)
    env.process(engine.run(env, prices))
    env.run()
    return engine.served()


LEAST_STRETCH, MOST = 12, 4096
"""Quiet iterations that are worth a vector, and the most that are priced at once."""


class _Engine:
    """Requests and ranks in time; `log` holds a row an iteration, or arrays of a stretch of them, as in `Served`."""

    def __init__(self, requests: RequestTrace, spec: ServingSpec, n_ranks: int, n_blocks: int) -> None:
        lengths = requests.input_tokens.tolist(), requests.output_tokens.tolist()
        self.requests, self.spec = requests, spec
        self.ranks = [Rank(spec, n_blocks, *lengths) for _ in range(n_ranks)]
        self.arrival_s: list[float] = requests.arrival_s.tolist()
        self.arrived = 0
        self.first_token_s = [np.nan] * len(requests)
        self.done_s = [np.nan] * len(requests)
        self.log: list[tuple[float | NDArray[Any], ...]] = []
        self.n_iterations = 0

    def run(self, env: simpy.Environment, prices: IterationPrices) -> Generator[simpy.Event, None, None]:
        """Iterations one after another; where nothing is to be done, until the next arrival."""
        n_requests, time_s = len(self.arrival_s), 0.0
        while True:
            self._take_in(env.now)
            if not any(rank.busy for rank in self.ranks):
                if self.arrived == n_requests:
                    return
                yield env.timeout(self.arrival_s[self.arrived] - env.now)
                continue
            quiet = self._quiet(env.now, time_s)
            if quiet >= LEAST_STRETCH:
                begin_s, loads = env.now, [rank.load() for rank in self.ranks]
                times_s = self._until_arrival(begin_s, prices.stretch_s(loads, quiet))
                time_s = float(times_s[-1])
                yield env.timeout(times_s.sum())
                self._pass_by(begin_s, times_s)
                continue
            loads = [rank.plan(self.n_iterations) for rank in self.ranks]
            time_s = prices.iteration_s(loads)
            yield env.timeout(time_s)
            self._finish(self.n_iterations, env.now)
            self._note(env.now, time_s, loads)
            self.n_iterations += 1

    def _quiet(self, now: float, time_s: float) -> int:
        """Iterations to come in which all ranks but decode, as far as worth pricing at once; each takes about so long.

        Contexts only grow, so that the next request arrives within no more iterations than of that time.
        """
        quiet = MOST
        if self.arrived < len(self.arrival_s) and time_s > 0:
            quiet = min(quiet, int((self.arrival_s[self.arrived] - now) / time_s) + 1)
        for rank in self.ranks:
            if quiet < LEAST_STRETCH:
                return 0
            quiet = min(quiet, rank.quiet(self.n_iterations))
        return quiet

    def _until_arrival(self, now: float, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The iterations up to the one during which the next request arrives."""
        if self.arrived == len(self.arrival_s):
            return times_s
        ends_s = now + np.cumsum(times_s)
        return times_s[: int(np.searchsorted(ends_s, self.arrival_s[self.arrived])) + 1]

    def _pass_by(self, begin_s: float, times_s: NDArray[np.float64]) -> None:
        """Carry out iterations in which all ranks but decode."""
        n = len(times_s)
        decoding = [rank.n_decoding for rank in self.ranks]
        blocks = sum(rank.pass_by(self.n_iterations, n) for rank in self.ranks)
        same = (np.full(n, number) for number in (sum(decoding), 0, 0))
        self.log.append((begin_s + np.cumsum(times_s), times_s, *same, blocks, np.full(n, max(decoding))))
        self.n_iterations += n

    def _take_in(self, now: float) -> None:
        """Requests that have arrived go to a rank: in turn, or to the one with fewest tokens."""
        while self.arrived < len(self.arrival_s) and self.arrival_s[self.arrived] <= now:
            if self.spec.router == "round-robin":
                rank = self.ranks[self.arrived % len(self.ranks)]
            else:
                rank = min(self.ranks, key=lambda one: one.tokens)
            rank.arrive(self.arrived)
            self.arrived += 1

    def _finish(self, iteration: int, now: float) -> None:
        for rank in self.ranks:
            first, last = rank.finish(iteration)
            for request in first:
                if self.first_token_s[request] != self.first_token_s[request]:  # not a pre-empted one that came back
                    self.first_token_s[request] = now
            for request in last:
                self.done_s[request] = now

    def _note(self, now: float, time_s: float, loads: Sequence[RankLoad]) -> None:
        decoding = prompts = waiting = blocks = most = 0
        for rank, load in zip(self.ranks, loads, strict=True):
            decoding += load.decoding
            prompts += load.prompt_tokens
            waiting += len(rank.waiting)
            blocks += rank.n_blocks - rank.free_blocks
            most = max(most, load.decoding + load.prompt_tokens)
        self.log.append((now, time_s, decoding, prompts, waiting, blocks, most))

    def served(self) -> Served:
        """The log as arrays."""
        end_s, busy_s, *counts = (np.hstack(column) for column in zip(*self.log, strict=True))
        decoding, prompts, waiting, blocks, most = (column.astype(np.int64) for column in counts)
        return Served(
            requests=self.requests,
            first_token_s=np.array(self.first_token_s),
            done_s=np.array(self.done_s),
            end_s=end_s,
            busy_s=busy_s,
            decoding=decoding,
            prompt_tokens=prompts,
            waiting=waiting,
            used_blocks=blocks,
            most_tokens=most,
            n_ranks=len(self.ranks),
            n_blocks=self.ranks[0].n_blocks,
            n_preempted=sum(rank.n_preempted for rank in self.ranks),
        )
