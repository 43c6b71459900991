"""Predicted times of recorded runs: their routing, contexts and arrivals, priced by parts of a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import ScenarioError
from sim.decode_loop import Served, serve
from sim.expert_cache import LayerUse, all_resident, offloaded
from sim.fluid import execute_fluid
from sim.policies.offload import Sides, microbatches, offload, streamed
from sim.program import Program, Work, compile_ops
from sim.recorded_runs import Seen, predicted_experts, tokens_of_experts

Counts = NDArray[np.int64]
SIDE_KINDS = {"copy": "copy", "layer copy": "copy", "host expert": "expert"}
"""Works of the side streams -> what their neighbours know them as; works of passes are "pass"."""


class PassTimes(Protocol):
    """Times of the parts of a pass on a device."""

    def line_s(self, part: str, size: float) -> float:
        """Time of a part for so many tokens of the pass (of the expert; of the head: requests) [s]."""

    def attention_s(self, variant: str, requests: int, longest: int) -> float:
        """Time of a layer's attention [s]; see `traces.capture.runs.parts.Attended` for the variants."""

    def fixed_s(self, part: str) -> float:
        """Time of "side copy", one expert to the device, or of the "hand-over" to a side stream [s]."""

    def host_expert_s(self, tokens: int) -> float:
        """Time of one expert on the host [s]."""

    def slowdown(self, part: str, neighbour: str) -> float:
        """Factor of the time of a part beside a "copy", an "expert" or a "pass"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Requests of a pass: tokens in the cache before it, new tokens of each, and whether its slots are gathered."""

    contexts: NDArray[np.int64]
    n_tokens: int
    gathered: bool = False

    @property
    def tokens(self) -> int:
        """New tokens of all requests."""
        return len(self.contexts) * self.n_tokens


def attention_s(batch: Batch, parts: PassTimes) -> float:
    """Time of a layer's attention [s]; the longest context pads all."""
    longest = int(batch.contexts.max()) + batch.n_tokens
    if batch.n_tokens > 1:
        if batch.contexts.any():
            raise ScenarioError("prompts with a past were not measured; predict prefills of whole prompts")
        return parts.attention_s("prompt gathered" if batch.gathered else "prompt", len(batch.contexts), longest)
    ragged = len(np.unique(batch.contexts)) > 1
    variant = "gathered" if batch.gathered else "ragged" if ragged else "equal"
    return parts.attention_s(variant, len(batch.contexts), longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPrices:
    """Durations of the works of a run of passes; tokens of experts int64 [pass, layer, expert]."""

    parts: PassTimes
    batches: Sequence[Batch]
    counts: Counts

    def of(self, work: Work) -> float:
        """Time of a work alone [s]."""
        parts, batch = self.parts, self.batches[work.step]
        if work.kind == "attention":
            return attention_s(batch, parts)
        if work.kind in ("expert", "host expert"):
            tokens = int(self.counts[work.step, work.layer, work.chunk])
            return parts.line_s("expert", tokens) if work.kind == "expert" else parts.host_expert_s(tokens)
        if work.kind == "head":
            return parts.line_s("head", len(batch.contexts))
        if work.kind in ("copy", "hand-over"):
            return parts.fixed_s("side copy" if work.kind == "copy" else "hand-over")
        if work.kind == "layer copy":
            return float(self.counts.shape[2] * parts.fixed_s("side copy"))
        if work.kind == "join":
            return 0.0
        return parts.line_s("gate" if work.kind == "predict" else work.kind, batch.tokens)

    def slowdown(self, work: Work, others: Sequence[Work]) -> float:
        """How much longer a work takes beside the others; factors of several neighbours multiply."""
        factor = 1.0
        for other in others:
            if "hand-over" not in (work.kind, other.kind):
                factor *= self.parts.slowdown(self._part(work), _neighbour(work, other))
        return factor

    def _part(self, work: Work) -> str:
        if work.kind in SIDE_KINDS:
            return f"side {SIDE_KINDS[work.kind]}"
        if work.kind == "attention":
            return "prompt" if self.batches[work.step].n_tokens > 1 else "equal"
        return "gate" if work.kind == "predict" else work.kind


def _neighbour(work: Work, other: Work) -> str:
    """What `other` counts as beside `work`; beside side streams, experts are told apart from the rest of a pass."""
    if work.kind in SIDE_KINDS and other.kind == "expert":
        return "expert"
    return SIDE_KINDS.get(other.kind, "pass")


def batches_of(seen: Seen) -> list[Batch]:
    """The passes of a run."""
    offsets, n_tokens = seen.arrays["request_offsets"], seen.arrays["n_tokens"]
    return [
        Batch(contexts=seen.arrays["contexts"][start:end].astype(np.int64), n_tokens=int(n))
        for start, end, n in zip(offsets[:-1], offsets[1:], n_tokens, strict=True)
    ]


def uses_of(seen: Seen) -> list[list[LayerUse]]:
    """What every pass does about the experts of every layer."""
    if "n_slots" not in seen.settings:
        return all_resident(seen.counts)
    settings = seen.settings
    return offloaded(seen.counts, predicted_experts(seen), settings["n_slots"], settings["copy_from_tokens"])


def predicted_run_s(seen: Seen, parts: PassTimes, *, one_side: bool) -> float:
    """Time of a run of passes [s]; `one_side`: copies and the host share a lane."""
    uses, shared = uses_of(seen), seen.shape.shared
    sides = Sides("host", "host") if one_side else Sides()
    program = Program()
    what = seen.settings.get("what")
    if what == "layers":
        streamed(program, uses, sides, overlapped=seen.settings["overlapped"], shared=shared)
    elif what == "microbatches":
        microbatches(program, uses, sides, overlapped=seen.settings["overlapped"], shared=shared)
    else:
        offload(program, uses, sides, shared=shared)
    prices = RunPrices(parts=parts, batches=batches_of(seen), counts=seen.counts)
    op_list = compile_ops(program.ops)
    ends_s = execute_fluid(op_list, [prices.of(op.work) for op in op_list.ops], prices.slowdown)
    return float(ends_s.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPrices:
    """Times of the passes of a server; `rows` int64 [request][layer, k, token] are the experts of each request."""

    seen: Seen
    parts: PassTimes

    def prefill_s(self, request: int) -> float:
        """The prompt by itself [s]."""
        start, prompt = self._begin(request), int(self.seen.arrays["prompt_tokens"][request])
        batch = Batch(contexts=np.zeros(1, np.int64), n_tokens=prompt, gathered=self._max_batch > 1)
        return self._pass_s(batch, np.arange(start, start + prompt))

    def decode_s(self, requests: Sequence[int], written: Sequence[int]) -> float:
        """One token of each request [s]."""
        prompts = self.seen.arrays["prompt_tokens"][list(requests)].astype(np.int64)
        contexts = prompts + np.array(written) - 1
        tokens = np.array([self._begin(request) for request in requests]) + contexts
        return self._pass_s(Batch(contexts=contexts, n_tokens=1, gathered=len(requests) < self._max_batch), tokens)

    @property
    def _max_batch(self) -> int:
        return int(self.seen.settings["max_batch"])

    def _begin(self, request: int) -> int:
        return int(self.seen.arrays["token_offsets"][request])

    def _pass_s(self, batch: Batch, tokens: NDArray[np.int64]) -> float:
        ids = self.seen.arrays["ids"][:, :, tokens]
        counts = tokens_of_experts(ids, np.array([0, len(tokens)]), self.seen.shape.n_experts)
        prices = RunPrices(parts=self.parts, batches=[batch], counts=counts)
        program = Program()
        offload(program, all_resident(counts), Sides(), shared=self.seen.shape.shared)
        return sum(prices.of(op.work) for op in program.ops)  # one lane: nothing overlaps


def predicted_service(seen: Seen, parts: PassTimes) -> Served:
    """A served load, by its arrivals, lengths and routing."""
    arrays = seen.arrays
    prices = RequestPrices(seen=seen, parts=parts)
    answers = arrays["answer_tokens"].astype(np.int64)
    return serve(arrays["arrival_s"], answers, int(seen.settings["max_batch"]), prices)
