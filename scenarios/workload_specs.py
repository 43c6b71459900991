"""What a scenario says of its tokens: a routing trace, or made-up routing, and the steps to replay."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from scenarios.routing_specs import RoutingSpec
from scenarios.sources import Spec

Phase = Literal["decode", "prefill", "train"]
FormerName = Literal["arrival", "expert-aware", "similar"]


class SynthesisSpec(Spec):
    """A made-up routing trace; `fit` takes the knobs from a real trace instead of from here."""

    tokens: int = Field(default=32768, gt=0, description="tokens of the trace")
    sequence_tokens: int = Field(default=256, gt=0, description="tokens of a sequence")
    skew: float = Field(default=0.5, ge=0, description="standard deviation of log expert popularity")
    sequence_skew: float = Field(default=0.5, ge=0, description="the same, drawn anew for each sequence")
    reuse: float = Field(default=0.2, ge=0, lt=1, description="chance that a token keeps an expert of its predecessor")
    affinity: float = Field(default=0.8, ge=0, lt=1, description="chance that a choice follows the token's theme")
    gate_spread: float | None = Field(
        default=None, gt=0, description="deviation of router logits, for gate weights; default: a trace without weights"
    )
    fit: str | None = Field(default=None, description="path of a trace whose statistics set the knobs")
    seed: int = Field(default=0, ge=0)


class SplitSpec(Spec):
    """Shares of the sequences: plans are fitted on one part and judged on another."""

    fit: float = Field(default=0.5, ge=0, le=1, description="share that plans are fitted on")
    evaluate: float = Field(default=0.5, gt=0, le=1, description="share that they are judged on")
    shifted: str | None = Field(
        default=None, description="label of a domain that is in neither part: `place` judges plans on it, too"
    )

    @model_validator(mode="after")
    def _parts(self) -> SplitSpec:
        if self.fit + self.evaluate > 1 + 1e-9:
            raise ValueError(f"fit {self.fit} and evaluate {self.evaluate} overlap: together they exceed 1")
        return self


class GenerateSpec(Spec):
    """Offline generation: every request has a prompt and an answer of the same lengths."""

    prompt_tokens: int = Field(gt=0, description="tokens of a prompt, padding included")
    new_tokens: int = Field(gt=1, description="tokens of an answer; the prefill brings the first one")


class BatchesSpec(Spec):
    """Which of the waiting requests a decode step takes together; short form: the name alone."""

    by: FormerName = Field(
        default="arrival",
        description="arrival: in turn; expert-aware: those that bring the fewest further experts, longest queues first "
        "(Read-ME); similar: clusters of like routes, all requests in turn (ExpertFlow)",
    )
    pool: int = Field(default=1, gt=0, description="requests that wait, in batches of tokens_per_device")
    recall: float = Field(
        default=1.0, ge=0, le=1, description="chance that a route is predicted right; others are drawn at random"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"by": given, **({} if given == "arrival" else {"pool": 2})} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _choice(self) -> BatchesSpec:
        if self.by != "arrival" and self.pool == 1:
            raise ValueError(f"batches by {self.by} choose among waiting requests: give pool: 2 or more")
        if self.by == "arrival" and self.recall < 1:
            raise ValueError("batches by arrival predict nothing: leave recall out")
        return self


class WorkloadSpec(Spec):
    """Tokens that every device processes in a step, taken from a routing trace."""

    trace: str | None = Field(
        default=None, description="path of a .npz trace, relative to the scenario, or the name of a shipped one"
    )
    synthetic: SynthesisSpec | None = None
    phase: Phase = Field(
        default="decode", description="train: a microbatch of packed sequences, forward and backward; see `training`"
    )
    tokens_per_device: int = Field(
        default=64, gt=0, description="tokens of a device in a step; in decode each is of another request"
    )
    prompt_tokens: int = Field(
        default=0,
        ge=0,
        description="decode: how many of a device's tokens belong to a prompt that joins the step (mixed passes)",
    )
    context_tokens: int | None = Field(default=None, gt=0, description="context of every token; default: its position")
    steps: int = Field(default=64, gt=0, description="steps to simulate, drawn from the judged part of the trace")
    microbatches: int | None = Field(
        default=None,
        gt=0,
        description="of a pipeline step (parallel.*.pp above 1), `tokens_per_device` each; `steps` different ones are "
        "simulated and drawn in turn",
    )
    generate: GenerateSpec | None = Field(
        default=None,
        description="with memory.stream: prefill and decode of tokens_per_device requests; `steps` decode passes, "
        "evenly spread, are simulated",
    )
    batches: BatchesSpec = BatchesSpec()
    split: SplitSpec = SplitSpec()
    routing: RoutingSpec = RoutingSpec()

    @model_validator(mode="after")
    def _one_origin(self) -> WorkloadSpec:
        if (self.trace is None) == (self.synthetic is None):
            raise ValueError("give either 'trace: FILE' or 'synthetic: {...}'")
        if self.prompt_tokens and (self.phase != "decode" or self.prompt_tokens >= self.tokens_per_device):
            raise ValueError(
                f"prompt_tokens {self.prompt_tokens} of the {self.tokens_per_device} tokens of a device: give fewer, "
                "in phase decode; in prefill all tokens are of prompts"
            )
        if self.batches.pool > 1 and (self.phase != "decode" or self.prompt_tokens or self.generate is not None):
            raise ValueError("batches are formed of requests that decode: leave prompt_tokens and generate out")
        return self


def tokens_by_phase(workload: WorkloadSpec) -> tuple[int, int]:
    """Tokens of a device that decode, and the ones after them, which belong to prompts, or to sequences in training."""
    n_prompt = workload.prompt_tokens if workload.phase == "decode" else workload.tokens_per_device
    return workload.tokens_per_device - n_prompt, n_prompt


def logit_positions(workload: WorkloadSpec) -> int:
    """Tokens of a device whose logits are computed: all but those of prompts, of which one counts."""
    n_decode, n_prompt = tokens_by_phase(workload)
    return n_prompt if workload.phase == "train" else n_decode + min(n_prompt, 1)
