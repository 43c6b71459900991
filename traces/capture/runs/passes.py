"""One forward pass of the decoder, part by part, with the experts done in the way that a run wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from traces.capture.decoder import Decoder, KvCache, span_of
from traces.capture.experts import BACKENDS, Routing
from traces.capture.streams import Lanes

PARTS = ("embed", "attention", "gate", "experts", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a pass reads: tokens int64 [request, token] that go to `slots` of the cache; forced experts by layer."""

    tokens: Tensor
    slots: Tensor | None = None
    forced_ids: Sequence[Tensor] | None = None


@dataclass(slots=True)
class PassLog:
    """What a pass did.

    contexts, n_tokens  cached tokens of each request before it, and new tokens of each.
    ids                 [layer]: chosen experts int64 [token, k]; `predicted` those that a prefetch expected.
    marks               of time: begin, embedding, then attention, gate and experts of every layer, head.
    hits, misses        [layer]: experts that were on the device and that were not, where not all are there.
    """

    contexts: list[int]
    n_tokens: int
    ids: list[Tensor] = field(default_factory=list)
    marks: list[Any] = field(default_factory=list)
    predicted: dict[int, Tensor] = field(default_factory=dict)
    hits: list[list[int]] = field(default_factory=list)
    misses: list[list[int]] = field(default_factory=list)


Mix = Callable[[int, Tensor, Tensor, Routing, PassLog], Tensor]
"""(layer, hidden [request, token, hidden], normed [token, hidden], routing, log) -> hidden plus experts' results."""


def run_pass(model: Decoder, cache: KvCache, inputs: Inputs, mix: Mix, lanes: Lanes) -> tuple[Tensor, PassLog]:
    """Most likely next token of every request, int64 [request], and the log; marks: start, embed, 3 a layer, head."""
    begin = lanes.mark()
    tokens = inputs.tokens.to(lanes.device)
    span = span_of(cache, inputs.slots, inputs.tokens)
    log = PassLog(span.starts.tolist(), span.n_tokens, marks=[begin])
    turns = model.turns_of(tokens, span)
    x = model.embedding(tokens)
    log.marks.append(lanes.mark())
    for number, block in enumerate(model.layers):
        x = block.attend(x, turns, (cache.keys[number], cache.values[number]), span)
        log.marks.append(lanes.mark())
        normed, routing, _ = block.route(x, None if inputs.forced_ids is None else inputs.forced_ids[number])
        log.ids.append(routing.ids)
        log.marks.append(lanes.mark())
        x = mix(number, x, normed, routing, log)
        log.marks.append(lanes.mark())
    cache.lengths[span.slots] += span.n_tokens
    best = model.logits(model.norm(x[:, -1])).argmax(dim=-1)
    log.marks.append(lanes.mark())
    return best, log


def whole_layers(model: Decoder, backend: str) -> Mix:
    """All experts on the device, by one of the back ends."""
    chosen = BACKENDS[backend]
    return lambda number, x, normed, routing, _: model.layers[number].mix(x, normed, routing, chosen)


def part_times(step_s: Sequence[float], n_layers: int) -> list[float]:
    """Time by part [s], in the order of PARTS, from the times between the marks of a pass."""
    layers = np.asarray(step_s[1:-1]).reshape(n_layers, 3).sum(axis=0)
    return [step_s[0], *layers.tolist(), step_s[-1]]


def routing_of(logs: Sequence[PassLog]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of what the simulator may see of passes.

    ids       uint8 [layer, k, token], all passes after one another; token_offsets int32 [pass + 1].
    contexts  int32 [request of a pass], cached tokens before it; request_offsets int32 [pass + 1].
    n_tokens  int32 [pass], new tokens of each request.
    """
    ids = torch.stack([torch.cat([log.ids[layer].cpu() for log in logs]) for layer in range(len(logs[0].ids))])
    return {
        "ids": ids.permute(0, 2, 1).contiguous().numpy().astype(np.uint8),
        "token_offsets": _offsets([len(log.ids[0]) for log in logs]),
        "contexts": np.array([context for log in logs for context in log.contexts], np.int32),
        "request_offsets": _offsets([len(log.contexts) for log in logs]),
        "n_tokens": np.array([log.n_tokens for log in logs], np.int32),
    }


def _offsets(sizes: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
