"""An engine in time: its ranks step together, as expert parallelism makes them, and change only between iterations."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from scenarios.serving_specs import ServingSpec
from sim.serving.log import Log
from sim.serving.ranks import Rank, RankLoad

LEAST_STRETCH, MOST = 8, 4096
"""Quiet iterations that are worth a vector, and the most that are priced at once."""


class IterationPrices(Protocol):
    """How long an iteration takes."""

    def iteration_s(self, loads: Sequence[RankLoad]) -> float:
        """Time of an iteration in which every rank does this [s]."""

    def stretch_s(self, loads: Sequence[RankLoad], n: int) -> NDArray[np.float64]:
        """Times of `n` iterations from this one on in which all ranks but decode, float64[n] [s].

        Contexts grow by a token a request. Equal to `iteration_s` of each to rounding.
        """


class Correction(Protocol):
    """What an engine's own tokens make of the times of its iterations; see `sim.serving.corrected`."""

    def iteration_s(self, engine: Engine, loads: Sequence[RankLoad], table_s: float) -> float:
        """Time of the iteration that it begins, priced at `table_s` [s]."""

    def stretch_s(self, engine: Engine, table_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Times of the iterations that it begins, up to its environment's next event at least [s]."""

    def quiet(self, iteration: int) -> int:
        """Iterations that may be priced at once."""


@dataclass(slots=True)
class Progress:
    """When every request got its first token and its last one, by all engines [s]; NaN where not yet.

    all_done  happens with the last token of the last request.
    """

    first_token_s: array[float]
    done_s: array[float]
    left: int
    all_done: simpy.Event

    @classmethod
    def of(cls, n_requests: int, env: simpy.Environment) -> Progress:
        """Of requests that have not begun."""
        return cls(array("d", [np.nan]) * n_requests, array("d", [np.nan]) * n_requests, n_requests, env.event())

    def first(self, request: int, now: float) -> None:
        """A first token; that of a pre-empted request which came back is none."""
        if self.first_token_s[request] != self.first_token_s[request]:
            self.first_token_s[request] = now

    def last(self, request: int, now: float) -> None:
        """A last token."""
        self.done_s[request] = now
        self.left -= 1
        if self.left == 0:
            self.all_done.succeed()


@dataclass(slots=True)
class Engine:
    """Ranks that step together; processes of the environment act on it through `submit` and `between`.

    log    what it did so far.
    open   whether requests are taken from `inbox`; they wait there otherwise.
    halted whether iterations may begin.
    at_boundary, at_begin  called before an iteration is planned, and with its time [s] when it begins.
    correction  of the prices, by the experts that its tokens visit.
    """

    env: simpy.Environment
    spec: ServingSpec
    ranks: list[Rank]
    prices: IterationPrices
    progress: Progress
    correction: Correction | None = None
    inbox: deque[int] = field(default_factory=deque)
    log: Log = field(default_factory=Log)
    n_iterations: int = 0
    n_routed: int = 0
    open: bool = True
    halted: bool = False
    at_boundary: Callable[[Engine], None] | None = None
    at_begin: Callable[[Engine, float], None] | None = None
    _changes: list[Callable[[Engine], None]] = field(default_factory=list)
    _wake: simpy.Event | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens that it holds or has yet to take in: what routers over several engines balance."""
        coming = sum(self.ranks[0].input_tokens[request] for request in self.inbox)
        return coming + sum(rank.n_tokens for rank in self.ranks)

    def submit(self, request: int) -> None:
        """A request arrives; it goes to a rank when the next iteration begins."""
        self.inbox.append(request)
        self._rouse()

    def between(self, change: Callable[[Engine], None]) -> None:
        """Let `change` act on the engine once no iteration is under way."""
        self._changes.append(change)
        self._rouse()

    def run(self) -> Generator[simpy.Event, None, None]:
        """Iterations one after another; where nothing is to be done, until somebody rouses it."""
        time_s = 0.0
        while True:
            while self._changes:
                self._changes.pop(0)(self)
            self._take_in()
            if self.at_boundary is not None:
                self.at_boundary(self)
            if self.halted or not any(rank.busy for rank in self.ranks):
                yield self._sleep()
                continue
            quiet = self._quiet(time_s)
            if quiet >= LEAST_STRETCH:
                begin_s, loads = self.env.now, [rank.load() for rank in self.ranks]
                times_s = self.prices.stretch_s(loads, quiet)
                if self.correction is not None:
                    times_s = self.correction.stretch_s(self, times_s)
                times_s = self._until_event(begin_s, times_s)
                time_s = float(times_s[-1])
                yield self.env.timeout(float(times_s.sum()))
                self._pass_by(begin_s, times_s)
                continue
            loads = [rank.plan(self.n_iterations) for rank in self.ranks]
            if not any(load.decoding or load.prompt_tokens for load in loads):
                yield self._sleep()  # all blocks are kept for caches on their way
                continue
            time_s = self.prices.iteration_s(loads)
            if self.correction is not None:
                time_s = self.correction.iteration_s(self, loads, time_s)
            if self.at_begin is not None:
                self.at_begin(self, time_s)
            yield self.env.timeout(time_s)
            self._finish()
            self._note(time_s, loads)
            self.n_iterations += 1

    def _sleep(self) -> simpy.Event:
        self._wake = self.env.event()
        return self._wake

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.triggered:
            self._wake.succeed()

    def _quiet(self, time_s: float) -> int:
        """Iterations to come in which all ranks but decode, as far as worth pricing at once; each takes about so long.

        Contexts only grow, so that the next event falls within no more iterations than of that time.
        """
        quiet, until_s = MOST, self.env.peek() - self.env.now
        if time_s > 0 and until_s < MOST * time_s:
            quiet = int(until_s / time_s) + 1
        if self.correction is not None:
            quiet = min(quiet, self.correction.quiet(self.n_iterations))
        for rank in self.ranks:
            if quiet < LEAST_STRETCH:
                return 0
            quiet = min(quiet, rank.quiet(self.n_iterations))
        return quiet

    def _until_event(self, now: float, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The iterations up to the one during which the next event of the environment happens."""
        ends_s = now + np.cumsum(times_s)
        return times_s[: int(np.searchsorted(ends_s, self.env.peek())) + 1]

    def _pass_by(self, begin_s: float, times_s: NDArray[np.float64]) -> None:
        """Carry out iterations in which all ranks but decode."""
        n = len(times_s)
        decoding = [rank.n_decoding for rank in self.ranks]
        blocks = sum(rank.pass_by(self.n_iterations, n) for rank in self.ranks)
        waiting = sum(len(rank.waiting) for rank in self.ranks)
        self.log.stretch(begin_s, times_s, np.asarray(blocks), (sum(decoding), waiting, max(decoding)))
        self.n_iterations += n

    def _take_in(self) -> None:
        """Requests that have arrived go to a rank: in turn, or to the one with fewest tokens."""
        while self.open and self.inbox:
            if self.spec.router == "round-robin":
                rank = self.ranks[self.n_routed % len(self.ranks)]
            else:
                rank = min(self.ranks, key=lambda one: one.n_tokens)
            rank.arrive(self.inbox.popleft())
            self.n_routed += 1

    def _finish(self) -> None:
        for rank in self.ranks:
            first, last = rank.finish(self.n_iterations)
            for request in first:
                self.progress.first(request, self.env.now)
            for request in last:
                self.progress.last(request, self.env.now)

    def _note(self, time_s: float, loads: Sequence[RankLoad]) -> None:
        decoding = prompts = waiting = blocks = most = 0
        for rank, load in zip(self.ranks, loads, strict=True):
            decoding += load.decoding
            prompts += load.prompt_tokens
            waiting += len(rank.waiting)
            blocks += rank.n_blocks - rank.free_blocks
            most = max(most, load.decoding + load.prompt_tokens)
        self.log.append((self.env.now, time_s, blocks, 1, decoding, prompts, waiting, blocks, most))
