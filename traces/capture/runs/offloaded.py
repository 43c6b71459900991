"""Experts of a layer with an LRU cache of slots: misses copied beside the hits' computation, or left to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from traces.capture.decoder import Decoder
from traces.capture.experts import ExpertWeights, Routing, combine, expert, sort_by_expert
from traces.capture.runs.passes import PassLog
from traces.capture.runs.slots import SlotCache
from traces.capture.streams import Event, Lanes

NEVER = 1 << 30
"""A `copy_from_tokens` that no expert reaches: all misses go to the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadPolicy:
    """What is done about experts that are not on the device.

    copy_from_tokens  a missed expert with so many tokens or more is copied, one with fewer computed on the host.
    prefetch          the next layer's router, given this layer's hidden states, says what to copy ahead.
    """

    n_slots: int
    copy_from_tokens: int = 1
    prefetch: bool = False


class OffloadedExperts:
    """The experts of all layers of a model; `mix` is called in place of the block's own."""

    def __init__(self, model: Decoder, policy: OffloadPolicy, lanes: Lanes) -> None:
        self.model, self.policy, self.lanes = model, policy, lanes
        self.caches = [SlotCache(block, policy.n_slots, lanes.device) for block in model.layers]

    def reset(self) -> None:
        """All caches as at the begin of a run."""
        for cache in self.caches:
            cache.reset()

    def mix(self, number: int, x: Tensor, normed: Tensor, routing: Routing, log: PassLog) -> Tensor:
        """x plus experts: residents first, then those on their way in the order of the copies, then the host's."""
        block, cache = self.model.layers[number], self.caches[number]
        routed = sort_by_expert(normed, routing, self.model.config.n_experts)
        counts = routed.counts.tolist()
        hosted = self._hosted(number, counts)
        wanted = [e for e, count in enumerate(counts) if count and e not in hosted]
        missed = cache.place(wanted)
        log.misses.append(sorted([*missed, *hosted]))
        log.hits.append([e for e in wanted if e not in missed])
        cache.fetch(missed, self.lanes)
        rows = dict(zip(range(len(counts)), routed.rows.split(counts), strict=True))
        from_host = {e: self._on_host(number, rows[e], e) for e in hosted}
        if self.policy.prefetch and number + 1 < len(self.caches):
            self._prefetch(number + 1, x, log)
        results: dict[int, Tensor] = {}
        for e in sorted(wanted, key=lambda e: (e in missed, e in cache.coming)):
            if e in cache.coming:
                cache.coming.pop(e).wait()
            results[e] = expert(rows[e], cache.slots, cache.resident[e])
        results |= {e: take() for e, take in from_host.items()}
        mixed = combine(torch.cat([results[e] for e in sorted(results)]), routed, normed)
        shared = block.share(normed)
        return x + (mixed if shared is None else mixed + shared).view_as(x)

    def _hosted(self, number: int, counts: list[int]) -> list[int]:
        """Absent experts whose tokens are too few to copy them."""
        resident, least = self.caches[number].resident, self.policy.copy_from_tokens
        return [e for e, count in enumerate(counts) if 0 < count < least and e not in resident]

    def _prefetch(self, number: int, x: Tensor, log: PassLog) -> None:
        """Start to copy what the router of layer `number` wants of the hidden states of the layer before."""
        _, routing, _ = self.model.layers[number].route(x)
        predicted = set(routing.ids.flatten().tolist())
        log.predicted[number] = routing.ids
        cache = self.caches[number]
        cache.fetch(cache.place(predicted), self.lanes)

    def _on_host(self, number: int, rows: Tensor, e: int) -> Callable[[], Tensor]:
        """A function that waits for the host's result of an expert, on the device."""
        work = _HostExpert(rows, self.caches[number].host, e)
        event: Event = self.lanes.host.submit(work.run, [self.lanes.reached()])
        return partial(work.take, event)


class _HostExpert:
    """One expert computed by the host: rows come from the device, the result goes back there."""

    def __init__(self, rows: Tensor, weights: ExpertWeights, number: int) -> None:
        self.rows, self.weights, self.number = rows, weights, number
        self.result: Tensor | None = None

    def run(self) -> None:
        self.result = expert(self.rows.cpu(), self.weights, self.number)

    def take(self, event: Event) -> Tensor:
        event.wait()
        if self.result is None:
            raise RuntimeError("the host's work has ended without a result")
        return self.result.to(self.rows.device)
