"""What a scenario says of requests under load: when they come, how long they are, and how an engine batches them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scenarios.placement_specs import PlacementSpec
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


class MixSpec(Spec):
    """Shares of the trace's domains among requests that arrive at a time; between two times in proportion."""

    at: Seconds = 0.0
    domains: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _some(self) -> MixSpec:
        if not sum(self.domains.values()) > 0:
            raise ValueError("all domains have a share of 0; give one a positive share")
        return self


class RoutesSpec(Spec):
    """Requests are tokens of the trace, and iterations are priced by the experts that these visit."""

    exact_every: int = Field(default=20, gt=0, description="iterations from one that is simulated whole to the next")
    mix: tuple[MixSpec, ...] = Field(
        default=(), description="domains of the trace (its labels) over time; default: all sequences alike"
    )

    @model_validator(mode="after")
    def _in_order(self) -> RoutesSpec:
        times_s = [mix.at for mix in self.mix]
        if times_s != sorted(set(times_s)):
            raise ValueError(f"mix: times must rise, and they are {', '.join(f'{at:g} s' for at in times_s)}")
        return self


class RebalanceSpec(Spec):
    """A new placement for the experts of a running engine, solved from what its tokens visited lately."""

    every: int = Field(default=1000, gt=0, description="iterations from one look at the loads to the next")
    drift: float = Field(
        default=0.0, ge=0, description="plan anew only where loads over the window are so far from those of the plan"
    )
    window: int = Field(default=1000, gt=0, description="iterations whose loads count")
    placement: PlacementSpec | None = Field(default=None, description="solver; default: that of the scenario")
    solve: Seconds = Field(default=0.0, ge=0, description="time until the solver's plan is there")
    link_frac: float = Field(
        default=0.1, gt=0, lt=1, description="share of every port that copies take while they last"
    )


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
    routes: RoutesSpec | None = Field(default=None, description="default: requests have no routes of their own")
    rebalance: RebalanceSpec | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _loads_are_known(self) -> ServingSpec:
        if self.rebalance is not None and self.routes is None:
            raise ValueError("rebalance looks at what requests visit: give them routes: {exact_every: 20}")
        return self

    @model_validator(mode="after")
    def _room(self) -> ServingSpec:
        if self.token_budget < self.max_requests:
            raise ValueError(
                f"token_budget {self.token_budget} is below max_requests {self.max_requests}: a full batch would leave "
                "no token for prompts; raise the budget or lower max_requests"
            )
        return self
