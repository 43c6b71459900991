"""Continuous batching request by request, in plain loops from the words of docs/reference/serving.md; slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scenarios.serving_specs import ServingSpec
from sim.serving.ranks import RankLoad
from traces.requests import RequestTrace


@dataclass
class Request:
    number: int
    arrival_s: float
    inputs: int
    outputs: int
    written: int = 0
    cached: int = 0  # tokens in the KV cache
    wanted: int = 0  # tokens that its prompt has to bring into the cache
    blocks: int = 0
    known: int = 0  # tokens of its prompt that a cache holds


@dataclass
class NaiveRank:
    free: int
    waiting: list[Request] = field(default_factory=list)
    prompts: list[Request] = field(default_factory=list)
    decoding: list[Request] = field(default_factory=list)
    preempted: int = 0


def blocks_of(tokens: int, spec: ServingSpec) -> int:
    return (tokens + spec.block_tokens - 1) // spec.block_tokens


def naive_serve(
    trace: RequestTrace,
    spec: ServingSpec,
    n_ranks: int,
    n_blocks: int,
    iteration_s: Callable[[Sequence[RankLoad]], float],
    growth: tuple[float, float, int] | None = None,
) -> tuple[list[float], list[float], int]:
    """(first token, done) of every request [s], and pre-emptions.

    growth  requests wait from a time on, until at another one so many ranks are added.
    """
    requests = [
        Request(i, *row)
        for i, row in enumerate(
            zip(trace.arrival_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
        )
    ]
    known = [0] * len(requests) if trace.cached_tokens is None else trace.cached_tokens.tolist()
    for request, cached in zip(requests, known, strict=True):
        request.wanted, request.known = request.inputs, cached
    coming, now = list(requests), 0.0
    ranks = [NaiveRank(n_blocks) for _ in range(n_ranks)]
    first_s, done_s = [float("nan")] * len(requests), [float("nan")] * len(requests)
    turn = 0
    while True:
        if growth is not None and now >= growth[1]:
            ranks += [NaiveRank(n_blocks) for _ in range(growth[2])]
            growth = None
        closed = growth is not None and now >= growth[0]
        while not closed and coming and coming[0].arrival_s <= now:
            request = coming.pop(0)
            rank = ranks[turn % len(ranks)] if spec.router == "round-robin" else min(ranks, key=held_tokens)
            rank.waiting.append(request)
            turn += 1
        if not any(rank.waiting or rank.prompts or rank.decoding for rank in ranks):
            if not coming:
                return first_s, done_s, sum(rank.preempted for rank in ranks)
            until = [] if growth is None else [time for time in growth[:2] if time > now]
            now = min([*until, *([] if closed else [coming[0].arrival_s])])
            continue
        plans = [plan(rank, spec) for rank in ranks]
        now = now + iteration_s([load for load, _ in plans])
        for rank, (_, takes) in zip(ranks, plans, strict=True):
            for request in list(rank.decoding):
                request.cached += 1
                write(request, rank, now, first_s, done_s)
            for request, taken in takes:
                request.cached += taken
                if request.cached == request.wanted:
                    rank.prompts.remove(request)
                    rank.decoding.append(request)
                    write(request, rank, now, first_s, done_s)


def held_tokens(rank: NaiveRank) -> int:
    decoding = sum(request.cached for request in rank.decoding)
    return decoding + sum(request.wanted - request.cached for request in (*rank.waiting, *rank.prompts))


def plan(rank: NaiveRank, spec: ServingSpec) -> tuple[RankLoad, list[tuple[Request, int]]]:
    """Blocks for the tokens to be written, then prompts in order of their arrival."""
    while sum(needs_block(request, spec) for request in rank.decoding) > rank.free:
        victim = rank.decoding.pop()
        rank.free += victim.blocks
        victim.blocks = victim.cached = 0
        victim.wanted = victim.inputs + victim.written
        rank.waiting.insert(0, victim)
        rank.preempted += 1
    for request in rank.decoding:
        if needs_block(request, spec):
            request.blocks += 1
            rank.free -= 1
    budget = spec.token_budget - len(rank.decoding)
    open_tokens = sum(request.wanted - request.cached for request in rank.prompts)
    static, idle = spec.batching == "static", not rank.decoding and not rank.prompts
    while rank.waiting and (idle if static else open_tokens < budget):
        if len(rank.decoding) + len(rank.prompts) == spec.max_requests:
            break
        request = rank.waiting[0]
        blocks = blocks_of(request.wanted, spec)
        if blocks > rank.free:
            break
        rank.waiting.pop(0)
        rank.free -= blocks
        request.blocks = blocks
        request.cached = min(max(int(request.wanted * spec.cached_frac), request.known), request.wanted - 1)
        rank.prompts.append(request)
        open_tokens += request.wanted - request.cached
    takes, pairs, ending = [], 0, 0
    for request in rank.prompts:
        taken = min(budget, request.wanted - request.cached)
        budget -= taken
        pairs += sum(range(request.cached + 1, request.cached + taken + 1))
        ending += request.cached + taken == request.wanted
        takes.append((request, taken))
        if budget == 0:
            break
    contexts = sum(request.cached + 1 for request in rank.decoding)
    tokens = sum(taken for _, taken in takes)
    return RankLoad(len(rank.decoding), contexts, tokens, pairs, ending), takes


def needs_block(request: Request, spec: ServingSpec) -> bool:
    return blocks_of(request.cached + 1, spec) > request.blocks


def write(request: Request, rank: NaiveRank, now: float, first_s: list[float], done_s: list[float]) -> None:
    """One token is written; the request leaves with its last one."""
    request.written += 1
    if request.written == 1:
        first_s[request.number] = now
    if request.written == request.outputs:
        done_s[request.number] = now
        rank.decoding.remove(request)
        rank.free += request.blocks
