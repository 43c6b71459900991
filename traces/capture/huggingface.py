"""Routing of Hugging Face MoE models: prompts run through prefill and greedy decode, one sequence a request."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scenarios.errors import TraceError
from traces.capture.hooks import Recorder, Routes, joined, recorded
from traces.capture.readings import routers_of
from traces.routing import Ids, Phase, Provenance, RoutingTrace, id_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How prompts are run.

    new_tokens  tokens that follow a prompt by greedy choice, each of which is routed, too; 0: prefill only.
    batch_size  prompts that run together; shorter ones are padded on the left, and padding is not recorded.
    stop_ids    tokens that end a request; they are not fed to the model, so they have no route.
    """

    new_tokens: int = 0
    batch_size: int = 1
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.new_tokens < 0 or self.batch_size < 1:
            raise TraceError(
                f"{self.new_tokens} new tokens in batches of {self.batch_size}; take at least 0, in batches of 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one request did: its prompt, the tokens that followed it, and the routes of both."""

    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    prefill: Routes
    decode: Routes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Requests in the order of their prompts, and what the model's routers choose from."""

    requests: tuple[Request, ...]
    layers: tuple[int, ...]
    n_experts: int


def capture(model: nn.Module, prompts: Sequence[Sequence[int]], generation: Generation) -> Capture:
    """Routing of a causal language model of transformers on `prompts` [request][token], on the model's device.

    Raises TraceError where the architecture is unknown, a prompt is empty, holds an id beyond the vocabulary or is
    longer than the context, and where a router cannot be read.
    """
    config: Any = model.config
    routers = routers_of(model, config.get_text_config().model_type)
    check_prompts(config.get_text_config(), prompts, generation.new_tokens)
    model.eval()
    requests: list[Request] = []
    with recorded(routers) as recorder, torch.no_grad():
        for start in range(0, len(prompts), generation.batch_size):
            requests += _run(model, recorder, prompts[start : start + generation.batch_size], generation)
    return Capture(requests=tuple(requests), layers=tuple(routers), n_experts=recorder.n_experts)


def check_prompts(config: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Raise TraceError where a model of this config cannot run the prompts and that many tokens more."""
    if not prompts:
        raise TraceError("there are no prompts; give at least one")
    longest = getattr(config, "max_position_embeddings", None)
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise TraceError(f"prompt {number} has no tokens; leave it out")
        worst = max(prompt)
        if min(prompt) < 0 or worst >= config.vocab_size:
            raise TraceError(
                f"prompt {number}: token {worst if worst >= config.vocab_size else min(prompt)} is outside the "
                f"vocabulary of {config.vocab_size}; was it made by another model's tokenizer?"
            )
        if longest is not None and len(prompt) + new_tokens > longest:
            raise TraceError(
                f"prompt {number}: {len(prompt)} tokens and {new_tokens} new ones exceed the model's context of "
                f"{longest}; shorten it, or cut all with --max-prompt-tokens {max(longest - new_tokens, 1)}"
            )


@dataclass(slots=True)
class _Growing:
    """A request while it runs."""

    prompt: tuple[int, ...]
    prefill: Routes
    generated: list[int] = field(default_factory=list)
    decode: list[Routes] = field(default_factory=list)
    running: bool = True

    def ended(self) -> Request:
        decode = joined(self.decode) if self.decode else None
        return Request(prompt=self.prompt, generated=tuple(self.generated), prefill=self.prefill, decode=decode)


def _run(
    model: nn.Module, recorder: Recorder, prompts: Sequence[Sequence[int]], generation: Generation
) -> list[Request]:
    """Prefill and decode of the prompts of one batch."""
    tokens, mask = _padded(prompts, model.device)
    logits, cache = _pass(model, tokens, mask, None)
    routes = recorder.take(tokens.numel())
    rows = np.arange(tokens.numel()).reshape(tokens.shape)
    kept = mask.cpu().numpy()
    growing = [_Growing(tuple(prompt), routes.of(rows[i][kept[i]])) for i, prompt in enumerate(prompts)]
    for _ in range(generation.new_tokens):
        chosen = logits[:, -1].argmax(dim=-1)
        for request, token in zip(growing, chosen.tolist(), strict=True):
            request.running = request.running and token not in generation.stop_ids
        if not any(request.running for request in growing):
            break
        mask = torch.cat((mask, mask.new_ones(len(growing), 1)), dim=1)
        logits, cache = _pass(model, chosen.unsqueeze(1), mask, cache)
        routes = recorder.take(len(growing))
        for i, (request, token) in enumerate(zip(growing, chosen.tolist(), strict=True)):
            if request.running:
                request.generated.append(token)
                request.decode.append(routes.of(np.array([i])))
    return [request.ended() for request in growing]


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens int64 [request, token], padded on the left with token 0, and which of them are real."""
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(longest, device=device) >= longest - lengths.unsqueeze(1)
    return torch.tensor(rows, device=device), mask


def _pass(model: nn.Module, tokens: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits of the last token [request, 1, vocabulary] and the cache, after one pass of the last tokens of requests.

    `mask` [request, token] marks the real tokens of requests so far; without padding, mask and positions are left to
    the model, as in ordinary use.
    """
    # What late versions of transformers 5 call `cache` was `past_key_values` before.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    arguments = {name: cache}
    if not bool(mask.all()):
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        arguments |= {"attention_mask": mask.long(), "position_ids": positions[:, -tokens.shape[1] :]}
    output = model(input_ids=tokens, use_cache=True, logits_to_keep=1, **arguments)
    return output.logits, getattr(output, name)


def trace_of(
    captured: Capture, phase: Phase, provenance: Provenance, labels: Sequence[str] = (), *, gate_weights: bool = False
) -> RoutingTrace:
    """Trace of the requests: prompts, generated tokens, or both in order; positions count from the prompt's start.

    labels  one per request, or none. Requests without tokens in this phase are left out.
    Raises TraceError where no request has any.
    """
    numbered = [(number, *_part(request, phase)) for number, request in enumerate(captured.requests)]
    parts = [(number, routes, positions) for number, routes, positions in numbered if routes is not None]
    if not parts:
        raise TraceError(f"no request has tokens in {phase}: ask for new tokens, or for another phase")
    routes = joined([part for _, part, _ in parts])
    lengths = [len(positions) for _, _, positions in parts]
    return RoutingTrace(
        ids=_ids(routes, captured.n_experts),
        n_experts=captured.n_experts,
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        positions=np.concatenate([positions for _, _, positions in parts]).astype(np.int32),
        moe_layers=captured.layers,
        phase=phase,
        provenance=provenance,
        weights=np.ascontiguousarray(routes.weights) if gate_weights else None,
        labels=tuple(labels[number] for number, _, _ in parts) if labels else (),
        weight_ordered=True,
    )


def _ids(routes: Routes, n_experts: int) -> Ids:
    return np.ascontiguousarray(routes.ids.astype(id_dtype(n_experts)))


def _part(request: Request, phase: Phase) -> tuple[Routes | None, NDArray[np.int64]]:
    """Routes and positions of a request's tokens in `phase`; no routes where it has no such tokens."""
    n_prompt, n_tokens = len(request.prompt), len(request.prompt) + len(request.generated)
    if phase == "prefill":
        return request.prefill, np.arange(n_prompt)
    if phase == "decode":
        return request.decode, np.arange(n_prompt, n_tokens)
    parts = [request.prefill] if request.decode is None else [request.prefill, request.decode]
    return joined(parts), np.arange(n_tokens)
