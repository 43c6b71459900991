"""Routing of a trained decoder: held-out prompts read at once, and continued greedily, one trace per phase."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.capture.decoder import Decoder, KvCache, Recorder
from traces.capture.experts import Backend, loop
from traces.capture.recipe import Plan
from traces.capture.tokens import Tokens
from traces.routing import Phase, Provenance, RoutingTrace, id_dtype

Ids = NDArray[np.uint8] | NDArray[np.uint16]


def prompts_of(tokens: Tokens, plan: Plan) -> NDArray[np.int64]:
    """Prompts spread evenly over the held-out tokens, without overlap: int64 [request, token].

    Raises TraceError where the text is too short.
    """
    stride = len(tokens) // plan.requests
    if stride < plan.prompt_tokens:
        raise TraceError(
            f"{len(tokens)} held-out tokens hold no {plan.requests} prompts of {plan.prompt_tokens} tokens; "
            "take fewer or shorter prompts, or a larger corpus"
        )
    starts = np.arange(plan.requests)[:, None] * stride
    return tokens[starts + np.arange(plan.prompt_tokens)].astype(np.int64)


def record(
    model: Decoder, prompts: NDArray[np.int64], new_tokens: int, backend: Backend = loop
) -> tuple[Ids, Ids, NDArray[np.int64]]:
    """Experts of the prompts and of their greedy continuation, and the continuation's tokens.

    prompts int64 [request, token] -> ids [layer, k, request, prompt token], ids [layer, k, request, new token] and
    int64 [request, new token]. A new token is recorded as it is read: the last prompt token's successor comes first.
    """
    device = next(model.parameters()).device
    recorder = Recorder()
    chosen = []
    with torch.inference_mode():
        cache = KvCache.empty(model.config, len(prompts), model.embedding.weight)
        hidden = model(torch.from_numpy(prompts).to(device), cache, backend=backend, recorder=recorder)
        for _ in range(new_tokens):
            chosen.append(model.logits(hidden[:, -1:]).argmax(dim=-1))
            hidden = model(chosen[-1], cache, backend=backend, recorder=recorder)
    prefill = _arranged(recorder, model, len(prompts), slice(0, 1))
    decode = _arranged(recorder, model, len(prompts), slice(1, None))
    return prefill, decode, torch.cat(chosen, dim=1).cpu().numpy()


def _arranged(recorder: Recorder, model: Decoder, n_requests: int, passes: slice) -> Ids:
    """Recorded passes as ids [layer, k, request, token]."""
    config = model.config
    parts = [torch.stack(layers).view(config.n_layers, n_requests, -1, config.top_k) for layers in recorder.ids[passes]]
    ids = torch.cat(parts, dim=2).permute(0, 3, 1, 2).numpy()
    return ids.astype(id_dtype(config.n_experts))


def trace_of(
    parts: Mapping[str, Ids], first_position: int, phase: Phase, provenance: Provenance, n_experts: int
) -> RoutingTrace:
    """One trace of the domains' ids [layer, k, request, token], one sequence a request, labelled by its domain."""
    labels: list[str] = []
    positions: list[NDArray[np.int32]] = []
    for name, ids in parts.items():
        labels += [name] * ids.shape[2]
        positions += [np.arange(ids.shape[3], dtype=np.int32) + first_position] * ids.shape[2]
    joined = np.concatenate([ids.reshape(*ids.shape[:2], -1) for ids in parts.values()], axis=2)
    return RoutingTrace(
        ids=np.ascontiguousarray(joined),
        n_experts=n_experts,
        offsets=np.concatenate([[0], np.cumsum([len(p) for p in positions])]).astype(np.int64),
        positions=np.concatenate(positions),
        moe_layers=tuple(range(joined.shape[0])),
        phase=phase,
        provenance=provenance,
        labels=tuple(labels),
        weight_ordered=True,
    )
