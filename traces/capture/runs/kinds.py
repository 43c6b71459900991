"""The cases of every kind of run on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from traces.capture.decoder import Decoder, KvCache
from traces.capture.experts import BACKENDS
from traces.capture.runs.bench import Bench
from traces.capture.runs.models import ROUTINGS, draw_tokens, forced, replayed_ids
from traces.capture.runs.offloaded import NEVER, OffloadedExperts, OffloadPolicy
from traces.capture.runs.overlap import StreamedLayers
from traces.capture.runs.passes import Inputs, Mix, PassLog, run_pass, whole_layers
from traces.capture.runs.quiet import quietly
from traces.capture.runs.record import Recorded
from traces.capture.runs.serving import Load, Server, ServingLog, poisson_load, routing_by_request

DECODE_STEPS, OFFLOAD_STEPS = 4, 24
DECODE_BATCHES, DECODE_CONTEXTS = (1, 4, 16, 48), (48, 300)
PREFILLS = ((1, 24), (1, 96), (1, 384), (4, 48), (8, 32))
"""(requests, tokens of each)"""


def contexts_of(n_requests: int, mean: int) -> list[int]:
    """Cached tokens of a batch: equal where they are few, else spread over half to one and a half of the mean."""
    if mean < 100 or n_requests == 1:
        return [mean] * n_requests
    return [mean // 2 + mean * place // max(n_requests - 1, 1) for place in range(n_requests)]


class Passes:
    """A number of passes over fresh copies of the same requests; `play` begins anew each time."""

    def __init__(self, bench: Bench, model: Decoder, contexts: Sequence[int], n_tokens: int, n_passes: int) -> None:
        self.bench, self.model, self.n_tokens, self.n_passes = bench, model, n_tokens, n_passes
        self.start = torch.tensor(contexts)
        self.cache: KvCache = bench.cache(model, contexts, n_tokens * n_passes)
        self.text = draw_tokens(model.config, len(contexts), n_tokens * n_passes, seed=5)
        self.ids: Tensor | None = None

    def replay(self) -> None:
        """Take the experts of a synthetic trace in place of the router's choice."""
        self.ids = replayed_ids(self.model.config, len(self.text), self.text.shape[1], seed=13)

    def play(self, mix: Mix, before: Callable[[], None] = lambda: None) -> list[PassLog]:
        """All passes; `before` is called at the begin of each."""
        self.cache.lengths.copy_(self.start)
        logs = []
        for number in range(self.n_passes):
            first = number * self.n_tokens
            tokens = self.text[:, first : first + self.n_tokens]
            before()
            inputs = Inputs(tokens=tokens, forced_ids=forced(self.ids, first, self.n_tokens))
            logs.append(run_pass(self.model, self.cache, inputs, mix, self.bench.lanes)[1])
        return logs


def steps(bench: Bench, name: str) -> Iterator[Recorded]:
    """Full forward steps: decode and prefill, every routing with the loop back end, some with grouped GEMM."""
    decodes = [("decode", n, context, 1, DECODE_STEPS) for n, context in product(DECODE_BATCHES, DECODE_CONTEXTS)]
    prefills = [("prefill", n, 0, tokens, 1) for n, tokens in PREFILLS]
    for routing, backend in product(ROUTINGS, ("loop", "grouped")):
        if backend == "grouped" and (routing != "own" or not has_grouped(bench)):
            continue
        model = bench.model(name, routing)
        for phase, n_requests, context, n_tokens, n_passes in [*decodes, *prefills]:
            passes = Passes(bench, model, contexts_of(n_requests, context), n_tokens, n_passes)
            if routing == "replayed":
                passes.replay()
            settings = {"model": name, "phase": phase, "routing": routing, "backend": backend}
            case = f"{name} {phase} {n_requests}x{context or n_tokens} {routing} {backend}"
            yield bench.measure(case, settings, partial(passes.play, whole_layers(model, backend)))


def has_grouped(bench: Bench) -> bool:
    """Whether this torch has a grouped GEMM for the device and type of the runs."""
    weight = torch.zeros(1, 16, 16, device=bench.lanes.device, dtype=bench.dtype)
    try:
        torch._grouped_mm(weight[0], weight, offs=torch.full((1,), 16, device=weight.device, dtype=torch.int32))
    except (AttributeError, RuntimeError):
        return False
    return True


OFFLOADS = (
    ("skewed", 1, (1, 2, 4, 6), (False, True)),
    ("skewed", 4, (4, 6), (False, True)),
    ("replayed", 1, (1, 2, 4), (False,)),
    ("replayed", 4, (4, 6), (False,)),
)
"""(routing, requests, eighths of the experts that the device holds, prefetch)"""


def offload(bench: Bench, name: str) -> Iterator[Recorded]:
    """Decode with experts in host memory and a cache of slots a layer; missed experts are copied."""
    for routing, n_requests, eighths, prefetches in OFFLOADS:
        for eighth, prefetch in product(eighths, prefetches):
            n_slots = bench.shapes[name].n_experts * eighth // 8
            policy = OffloadPolicy(n_slots=n_slots, prefetch=prefetch)
            yield offloaded(bench, name, routing, n_requests, policy)


HYBRIDS = (1, 2, NEVER)
"""Tokens of a missed expert from which on it is copied: all are, those of several tokens, none."""


def hybrid(bench: Bench, name: str) -> Iterator[Recorded]:
    """The same, with missed experts computed on the host: all, none, or those of one token."""
    for (n_requests, eighth), least in product(((1, 2), (4, 4), (6, 6)), HYBRIDS):
        n_slots = bench.shapes[name].n_experts * eighth // 8
        policy = OffloadPolicy(n_slots=n_slots, copy_from_tokens=least)
        yield offloaded(bench, name, "skewed", n_requests, policy)


def offloaded(bench: Bench, name: str, routing: str, n_requests: int, policy: OffloadPolicy) -> Recorded:
    """One case of offload or hybrid: decode steps from contexts of 32 tokens on."""
    model = bench.model(name, routing)
    passes = Passes(bench, model, [32] * n_requests, 1, OFFLOAD_STEPS)
    if routing == "replayed":
        passes.replay()
    experts = OffloadedExperts(model, policy, bench.lanes)
    settings = {
        "model": name,
        "phase": "decode",
        "routing": routing,
        "n_slots": policy.n_slots,
        "prefetch": policy.prefetch,
        "copy_from_tokens": policy.copy_from_tokens,
    }
    misses = {1: "copy", NEVER: "host"}.get(policy.copy_from_tokens, f"copy from {policy.copy_from_tokens}")
    ahead = " prefetch" if policy.prefetch else ""
    case = f"{name} {n_requests} requests {routing} {policy.n_slots} slots {misses}{ahead}"
    return bench.measure(case, settings, partial(passes.play, experts.mix), experts.reset)


def overlap(bench: Bench, name: str) -> Iterator[Recorded]:
    """Copies of whole layers beside computation, and two microbatches beside each other; each against one by one."""
    for overlapped, n_requests in product((False, True), (4, 16, 48)):
        model = bench.model(name, "own")
        passes = Passes(bench, model, [64] * n_requests, 1, DECODE_STEPS)
        streamed = StreamedLayers(model, BACKENDS[bench.backend], bench.lanes, overlapped=overlapped)
        settings = {"model": name, "phase": "decode", "what": "layers", "overlapped": overlapped}
        case = f"{name} {n_requests} requests layers {'overlapped' if overlapped else 'sequential'}"
        yield bench.measure(case, settings, partial(passes.play, streamed.mix, streamed.begin))
    for overlapped, (n_requests, n_tokens) in product((False, True), ((1, 1), (8, 1), (1, 96))):
        yield microbatches(bench, name, overlapped, n_requests, n_tokens)


def microbatches(bench: Bench, name: str, overlapped: bool, n_requests: int, n_tokens: int) -> Recorded:
    """Two microbatches of so many requests and tokens each: one after the other, or each on a stream of its own."""
    model, phase = bench.model(name, "own"), "decode" if n_tokens == 1 else "prefill"
    n_passes = DECODE_STEPS if phase == "decode" else 1
    pair = [Passes(bench, model, [64 if phase == "decode" else 0] * n_requests, n_tokens, n_passes) for _ in range(2)]
    pair[1].text = pair[1].text.flip(1)
    pair[1].cache = KvCache.empty(model.config, n_requests, model.embedding.weight)
    mix = whole_layers(model, bench.backend)

    def play() -> list[PassLog]:
        if not overlapped:
            return [log for passes in pair for log in passes.play(mix)]
        aside: list[PassLog] = []
        end = bench.lanes.copies.submit(lambda: aside.extend(pair[1].play(mix)), [bench.lanes.reached()])
        logs = pair[0].play(mix)
        end.wait()
        return logs + aside

    settings = {"model": name, "phase": phase, "what": "microbatches", "overlapped": overlapped}
    case = f"{name} 2 x {n_requests}x{n_tokens} {'overlapped' if overlapped else 'sequential'}"
    return bench.measure(case, settings, play)


SERVED, SERVED_REPEATS = 16, 3
LOADS = ((2, 0.6), (8, 0.6), (8, 1.5))
"""(largest batch, offered tokens over those that full batches write)"""


def served(server: Server, load: Load) -> list[ServingLog]:
    """All repeats of one load."""
    return [server.serve(load) for _ in range(SERVED_REPEATS)]


def serving(bench: Bench, name: str) -> Iterator[Recorded]:
    """Continuous batching; arrivals scale with the time of a full step, so that any device is loaded alike."""
    for max_batch, share in LOADS:
        model = bench.model(name, "own")
        mix = whole_layers(model, bench.backend)
        full = Passes(bench, model, [96] * max_batch, 1, DECODE_STEPS)
        probe = bench.measure("probe", {}, partial(full.play, mix))
        step_s = float(np.median(probe.measured["step_s"]))
        load = poisson_load(SERVED, share * max_batch / step_s / 28, seed=17)  # answers have 28 tokens in the mean
        server = Server(model, mix, bench.lanes, max_batch)
        server.serve(load)
        logs, others_frac = quietly(partial(served, server, load))
        ids, offsets = routing_by_request(logs[0], SERVED)
        settings = {"model": name, "routing": "own", "max_batch": max_batch, "backend": bench.backend}
        seen: dict[str, Any] = {
            "ids": ids,
            "token_offsets": offsets,
            "arrival_s": load.arrival_s,
            "prompt_tokens": load.prompt_tokens.astype(np.int32),
            "answer_tokens": load.answer_tokens.astype(np.int32),
        }
        measured = {
            "first_token_s": np.array([log.first_token_s for log in logs]),
            "done_s": np.array([log.done_s for log in logs]),
        }
        case = f"{name} batch {max_batch} load {share}"
        run_s = [float(log.done_s.max()) for log in logs]
        yield Recorded(
            name=case,
            settings=settings,
            run_s=run_s,
            seen=seen,
            measured=measured,
            others_frac=round(others_frac, 3),
        )


KINDS: dict[str, Callable[[Bench, str], Iterator[Recorded]]] = {
    "steps": steps,
    "offload": offload,
    "hybrid": hybrid,
    "overlap": overlap,
    "serving": serving,
}
"""(bench, model) -> cases"""
