"""Disaggregated serving in callbacks on a heap of times, written from the words of docs/reference/serving.md; slow."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sim.serving.handover import Side, Wire
from tests.oracles.naive_engine import NaiveRank, Request, blocks_of, held_tokens, plan, write
from traces.requests import RequestTrace

Action = Callable[[], None]


@dataclass
class Port:
    free: bool = True
    queue: list[Action] = field(default_factory=list)

    def take(self, then: Action) -> None:
        if self.free:
            self.free = False
            then()
        else:
            self.queue.append(then)

    def give(self) -> None:
        if self.queue:
            self.queue.pop(0)()
        else:
            self.free = True


class ApartRank(NaiveRank):
    def __init__(self, free: int) -> None:
        super().__init__(free)
        self.port, self.coming = Port(), 0


@dataclass
class NaiveEngine:
    side: Side
    ranks: list[ApartRank]
    inbox: list[Request] = field(default_factory=list)
    changes: list[Action] = field(default_factory=list)
    busy: bool = False
    turn: int = 0


class Apart:
    """The whole of it; `first_s`, `done_s`, `waited_s`, `late_s` of every request when it has run."""

    def __init__(self, trace: RequestTrace, prefill: Side, decode: Side, wire: Wire) -> None:
        self.now, self.heap, self.n, self.wire = 0.0, list[tuple[float, int, Action]](), 0, wire
        new = lambda side: NaiveEngine(side, [ApartRank(side.n_blocks) for _ in range(side.n_ranks)])  # noqa: E731
        self.prefill, self.decode = [new(prefill) for _ in range(prefill.n_engines)], new(decode)
        rows = zip(trace.arrival_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
        requests = [Request(i, *row) for i, row in enumerate(rows)]
        self.first_s, self.done_s, self.waited_s, self.late_s = ([float("nan")] * len(requests) for _ in range(4))
        self.rooms: dict[int, dict[str, Any]] = {}
        self.queue: list[Request] = []
        for request in requests:
            request.wanted = request.inputs
            self.at(request.arrival_s, lambda one=request: self.arrive(one))
        while self.heap:
            self.now, _, action = heapq.heappop(self.heap)
            action()

    def at(self, time_s: float, action: Action) -> None:
        heapq.heappush(self.heap, (time_s, self.n, action))
        self.n += 1

    def change(self, engine: NaiveEngine, action: Action) -> None:
        engine.changes.append(action)
        self.at(self.now, lambda: None if engine.busy else self.begin(engine))

    def arrive(self, request: Request) -> None:
        engine = self.prefill[request.number % len(self.prefill)]
        if engine.side.spec.router == "least-tokens":
            engine = min(
                self.prefill, key=lambda e: sum(map(held_tokens, e.ranks)) + sum(one.inputs for one in e.inbox)
            )
        self.change(engine, lambda: None)
        engine.inbox.append(request)

    def begin(self, engine: NaiveEngine) -> None:
        while engine.changes:
            engine.changes.pop(0)()
        while engine.inbox:
            rank: Any = engine.ranks[engine.turn % len(engine.ranks)]
            if engine.side.spec.router == "least-tokens":
                rank = min(engine.ranks, key=held_tokens)
            rank.waiting.append(engine.inbox.pop(0))
            engine.turn += 1
        if engine is self.decode:
            self.give_room()
        plans = [plan(rank, engine.side.spec) for rank in engine.ranks]
        if not any(load.decoding + load.prompt_tokens for load, _ in plans):
            return
        engine.busy = True
        time_s = engine.side.prices.iteration_s([load for load, _ in plans])
        takes = [take for _, take in plans]
        self.at(self.now + time_s, lambda: self.end(engine, takes))
        if engine is not self.decode:
            for rank, taken in zip(engine.ranks, takes, strict=True):
                for request, tokens in taken:
                    self.chunk(engine, rank, request, request.cached + tokens, self.now + time_s)

    def end(self, engine: NaiveEngine, takes: list[list[tuple[Request, int]]]) -> None:
        for rank, taken in zip(engine.ranks, takes, strict=True):
            for request in list(rank.decoding):
                request.cached += 1
                write(request, rank, self.now, self.first_s, self.done_s)
            for request, tokens in taken:
                request.cached += tokens
                if request.cached == request.wanted:
                    rank.prompts.remove(request)
                    rank.decoding.append(request)
                    write(request, rank, self.now, self.first_s, self.done_s)
                    if engine is not self.decode and request in rank.decoding:
                        rank.decoding.remove(request)
        engine.busy = False
        self.begin(engine)

    def chunk(self, engine: NaiveEngine, rank: ApartRank, request: Request, held: int, computed_s: float) -> None:
        ends, layerwise, layers = held == request.wanted, self.wire.layerwise, self.wire.n_layers
        if request.outputs == 1 or not (ends or layerwise):
            return

        def begin() -> None:
            room = self.rooms.setdefault(request.number, {"asked": self.now, "rank": None, "then": [], "sent": 0})
            if len(room["then"]) == 0 and room["sent"] == 0:
                self.change(self.decode, lambda: self.queue.append(request))
            before = self.wire.moved_bytes(room["sent"]) if room["sent"] else 0.0
            crosses_s = (self.wire.moved_bytes(held) - before) / self.wire.bytes_per_s
            room["sent"] = held
            last_s = crosses_s / layers if layerwise else crosses_s

            def tail() -> None:
                self.move(rank, room["rank"], last_s, lambda: self.at(self.now + self.wire.latency_s, there))

            def there() -> None:
                if ends:
                    self.late_s[request.number] = self.now - self.first_s[request.number]
                    self.change(engine, lambda: self.drop(rank, request))
                    self.change(self.decode, lambda: self.receive(room["rank"], request))

            def go() -> None:
                if not layerwise:
                    tail()
                    return
                later = lambda: tail() if self.now >= computed_s else self.at(computed_s, tail)  # noqa: E731
                self.move(rank, room["rank"], last_s * (layers - 1), later)

            if room["rank"] is None:
                room["then"].append(go)
            else:
                go()

        if layerwise:
            begin()
        else:
            self.at(computed_s, begin)

    def drop(self, rank: ApartRank, request: Request) -> None:
        rank.free += blocks_of(request.inputs, self.prefill[0].side.spec)

    def receive(self, rank: ApartRank, request: Request) -> None:
        rank.coming -= 1
        request.blocks = blocks_of(request.inputs, self.decode.side.spec)
        rank.decoding.append(request)

    def give_room(self) -> None:
        spec = self.decode.side.spec
        while self.queue:
            request = self.queue[0]
            blocks = blocks_of(request.inputs, spec)
            free = [
                rank
                for rank in self.decode.ranks
                if blocks <= rank.free
                and not rank.waiting
                and len(rank.decoding) + len(rank.prompts) + rank.coming < spec.max_requests
            ]
            if not free:
                return
            rank = min(free, key=held_tokens) if spec.router == "least-tokens" else free[self.decode.turn % len(free)]
            self.decode.turn += 1
            rank.free -= blocks
            rank.coming += 1
            self.queue.pop(0)
            room = self.rooms[request.number]
            room["rank"], self.waited_s[request.number] = rank, self.now - room["asked"]
            for then in room["then"]:
                self.at(self.now, then)

    def move(self, rank: ApartRank, to: ApartRank, time_s: float, then: Action) -> None:
        def moved() -> None:
            to.port.give()
            rank.port.give()
            then()

        rank.port.take(lambda: to.port.take(lambda: self.at(self.now + time_s, moved)))
