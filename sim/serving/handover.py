"""Prefill and decode on devices of their own, with keys and values going from one to the other (DistServe, OSDI 24).

A prompt's first token is that of the engine which prefilled it. Its keys and values wait there until the engine that
decodes has a place and blocks for them, then cross by the ports of both ranks, first come, first served. With
`layerwise` (Splitwise, ISCA 24; Mooncake, FAST 25) room is asked for when the prompt begins, and of every chunk all
layers but the last one cross while it is computed.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from scenarios.serving_specs import ServingSpec
from sim.serving.engine import Engine, IterationPrices, Progress
from sim.serving.log import COARSE, Log
from sim.serving.loop import Handed, Served, Watch, arrivals, check_lengths, served
from sim.serving.ranks import Rank
from traces.requests import RequestTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Engines of one kind: limits, ranks of each, blocks of a rank's KV cache, prices."""

    spec: ServingSpec
    n_ranks: int
    n_blocks: int
    prices: IterationPrices
    n_engines: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What lies between a rank that prefills and one that decodes.

    moved_bytes  keys and values of the first so many tokens of a prompt [bytes], all devices of the ranks together.
    bytes_per_s  of the slower side's ports, all devices of the rank together; latency_s: of a message.
    layerwise    whether all layers but the last one of `n_layers` cross while a chunk is computed.
    """

    moved_bytes: Callable[[int], float]
    bytes_per_s: float
    latency_s: float
    n_layers: int
    layerwise: bool


@dataclass(slots=True)
class _Crossing:
    """A request on its way: when it asked for room, the rank that gave it, tokens that have been sent."""

    asked_s: float
    room: simpy.Event
    sent: int = 0


@dataclass(slots=True)
class Handover:
    """Brings keys and values from `prefill` to `decode`; ports are by id of a rank."""

    env: simpy.Environment
    wire: Wire
    decode: Engine
    progress: Progress
    ports: dict[int, simpy.Resource]
    waited_s: array[float]
    late_s: array[float]
    moved_bytes: float = 0.0
    _under_way: dict[int, _Crossing] = field(default_factory=dict)
    _queue: deque[int] = field(default_factory=deque)
    _n_given: int = 0

    def begun(self, engine: Engine, time_s: float) -> None:
        """An iteration of an engine that prefills begins: what it computes is to cross."""
        for rank in engine.ranks:
            for request, held, ends in rank.chunks():
                if rank.output_tokens[request] > 1 and (ends or self.wire.layerwise):
                    self.env.process(self._cross(engine, rank, (request, held, ends), time_s))

    def give_room(self, decode: Engine) -> None:
        """Requests get a rank with room in the order in which they asked, between iterations."""
        while self._queue:
            request = self._queue[0]
            free = [rank for rank in decode.ranks if rank.has_room(request)]
            if not free:
                return
            rank = free[self._n_given % len(free)]
            if decode.spec.router == "least-tokens":
                rank = min(free, key=lambda one: one.n_tokens)
            rank.expect(request)
            self._n_given += 1
            crossing = self._under_way[self._queue.popleft()]
            self.waited_s[request] = self.env.now - crossing.asked_s
            crossing.room.succeed(rank)

    def handed(self, engines: Sequence[Engine]) -> Handed:
        """What crossed so far, and what the engines did that prefill."""
        return Handed(
            waited_s=np.array(self.waited_s),
            late_s=np.array(self.late_s),
            moved_bytes=self.moved_bytes,
            prefill_logs=tuple(engine.log.array() for engine in engines),
        )

    def _cross(
        self, engine: Engine, rank: Rank, chunk: tuple[int, int, bool], time_s: float
    ) -> Generator[simpy.Event, Any, None]:
        """Keys and values of a chunk that takes so long, to the rank that decodes."""
        request, held, ends = chunk
        computed = self.env.timeout(time_s)
        if not self.wire.layerwise:
            yield computed
        crossing = self._asking(request)
        total_bytes = self.wire.moved_bytes(held) - (self.wire.moved_bytes(crossing.sent) if crossing.sent else 0.0)
        crossing.sent = held
        to = yield crossing.room
        last_s = total_bytes / self.wire.bytes_per_s
        if self.wire.layerwise:
            last_s /= self.wire.n_layers
            yield from self._move(rank, to, last_s * (self.wire.n_layers - 1))
            yield computed
        yield from self._move(rank, to, last_s)
        self.moved_bytes += total_bytes
        if ends:
            yield self.env.timeout(self.wire.latency_s)
            self._arrive(engine, rank, to, request)

    def _asking(self, request: int) -> _Crossing:
        """The crossing of a request, which asks for room with its first chunk."""
        if request not in self._under_way:
            self._under_way[request] = _Crossing(self.env.now, self.env.event())
            self.decode.between(lambda _: self._queue.append(request))
        return self._under_way[request]

    def _move(self, rank: Rank, to: Rank, time_s: float) -> Generator[simpy.Event, Any, None]:
        with self.ports[id(rank)].request() as sending:
            yield sending
            with self.ports[id(to)].request() as receiving:
                yield receiving
                yield self.env.timeout(time_s)

    def _arrive(self, engine: Engine, rank: Rank, to: Rank, request: int) -> None:
        del self._under_way[request]
        self.late_s[request] = self.env.now - self.progress.first_token_s[request]
        engine.between(lambda _: rank.release(request))
        self.decode.between(lambda decode: to.receive(request, decode.n_iterations))


def serve_apart(requests: RequestTrace, prefill: Side, decode: Side, wire: Wire, watch: Watch | None = None) -> Served:
    """All requests, prefilled by the engines of one side and decoded by that of the other.

    Raises MemoryInfeasible where a prompt is longer than the KV cache of a rank that prefills, or a request than that
    of one that decodes.
    """
    check_lengths(requests, requests.input_tokens, prefill.spec, prefill.n_blocks)
    check_lengths(requests, requests.input_tokens + requests.output_tokens, decode.spec, decode.n_blocks)
    env = simpy.Environment()
    progress = Progress.of(len(requests), env)
    columns = requests.columns()

    def engine_of(side: Side, hands_over: bool) -> Engine:
        ranks = [Rank(side.spec, side.n_blocks, *columns, hands_over) for _ in range(side.n_ranks)]
        return Engine(env, side.spec, ranks, side.prices, progress, log=Log(COARSE))

    engines = [engine_of(prefill, True) for _ in range(prefill.n_engines)]
    answering = engine_of(decode, False)
    unknown = array("d", [np.nan]) * len(requests)
    ranks = [rank for engine in (*engines, answering) for rank in engine.ranks]
    ports = {id(rank): simpy.Resource(env) for rank in ranks}
    handover = Handover(env, wire, answering, progress, ports, unknown, unknown[:])
    answering.at_boundary = handover.give_room
    for engine in engines:
        engine.at_begin = handover.begun
    for engine in (*engines, answering):
        env.process(engine.run())
    env.process(arrivals(env, requests.arrival_s, _front(engines, prefill.spec)))

    def told() -> Served:
        return served(requests, answering, progress, handover.handed(engines))

    if watch is not None:
        watch(told)
    env.run(until=progress.all_done)
    return told()


def _front(engines: Sequence[Engine], spec: ServingSpec) -> Callable[[int], None]:
    """Sends a request to an engine: in turn, or to the one with fewest tokens."""

    def submit(request: int) -> None:
        turn = engines[request % len(engines)]
        (min(engines, key=lambda one: one.n_tokens) if spec.router == "least-tokens" else turn).submit(request)

    return submit
