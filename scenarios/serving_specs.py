"""What a scenario says of requests under load: when they come, how long they are, and how an engine batches them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scenarios.scaling_specs import FailureSpec, ScalingSpec, StagesSpec
from scenarios.sources import Spec
from scenarios.units import Seconds

RouterName = Literal["round-robin", "least-tokens"]
ArrivalName = Literal["poisson", "gamma", "even"]


class RequestsSpec(Spec):
    """Requests of a file, or made up: arrivals at a rate, lengths log-normal around their means."""

    file: str | None = Field(
        default=None, description="Azure, Mooncake or BurstGPT trace, or columns arrival_s, input_tokens, output_tokens"
    )
    first: int | None = Field(default=None, gt=0, description="so many requests of the file")
    speed: float = Field(default=1.0, gt=0, description="file: requests come so many times faster")
    requests_per_s: float | None = Field(default=None, gt=0)
    n: int = Field(default=1000, gt=0, description="made-up requests")
    arrivals: ArrivalName = "poisson"
    arrival_cv: float = Field(default=2.0, gt=0, description="gamma: deviation over mean of the time between requests")
    input_tokens: int = Field(default=1024, gt=0, description="mean length of a prompt")
    output_tokens: int = Field(default=256, gt=0, description="mean length of an answer")
    length_cv: float = Field(default=0.8, ge=0, description="deviation over mean of both lengths")

    @model_validator(mode="after")
    def _one_origin(self) -> RequestsSpec:
        if (self.file is None) == (self.requests_per_s is None):
            raise ValueError("give either file: FILE or requests_per_s: 8")
        return self


class SloSpec(Spec):
    """Limits that a request must meet to count as served well."""

    ttft: Seconds | None = Field(default=None, description="time to first token")
    tpot: Seconds | None = Field(default=None, description="time per output token after the first")

    @model_validator(mode="after")
    def _any(self) -> SloSpec:
        if self.ttft is None and self.tpot is None:
            raise ValueError("give ttft: 2 s, tpot: 50 ms, or both")
        return self


class ServingSpec(Spec):
    """Continuous batching with chunked prefill; every attention rank has a queue, a batch and a KV cache of its own."""

    requests: RequestsSpec
    token_budget: int = Field(default=2048, gt=0, description="tokens of one iteration on a rank, decode ones included")
    max_requests: int = Field(default=256, gt=0, description="requests of a rank's batch")
    block_tokens: int = Field(default=16, gt=0, description="tokens of a block of the KV cache")
    kv_tokens: int | None = Field(default=None, gt=0, description="KV cache of a rank; default: what memory leaves")
    cached_frac: float = Field(default=0.0, ge=0, lt=1, description="share of each prompt whose prefill is cached")
    router: RouterName = Field(default="round-robin", description="to which rank a request goes when it arrives")
    slo: SloSpec | None = None
    scaling: ScalingSpec | None = Field(default=None, description="devices that come and go under load")
    failures: tuple[FailureSpec, ...] = Field(default=(), description="devices that die under load")
    stages: StagesSpec = Field(default=StagesSpec(), description="of scaling and failures: times beside bytes")
    name: str | None = None

    @property
    def changes(self) -> bool:
        """Whether the engine changes while it serves."""
        return self.scaling is not None or bool(self.failures)

    @model_validator(mode="after")
    def _observed(self) -> ServingSpec:
        controller = self.scaling and self.scaling.controller
        if controller and controller.slo_attainment is not None and self.slo is None:
            raise ValueError("scaling.controller.slo_attainment: give the limits that are met, slo: {ttft: 1 s}")
        return self

    @model_validator(mode="after")
    def _room(self) -> ServingSpec:
        if self.token_budget < self.max_requests:
            raise ValueError(
                f"token_budget {self.token_budget} is below max_requests {self.max_requests}: a full batch would leave "
                "no token for prompts; raise the budget or lower max_requests"
            )
        return self
