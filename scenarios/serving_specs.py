"""What a scenario says of requests under load: when they come, how long they are, and how an engine batches them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from scenarios.cluster_specs import ClusterSpec, ParallelSpec
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.sources import Spec
from scenarios.units import Seconds

RouterName = Literal["round-robin", "least-tokens"]
ArrivalName = Literal["poisson", "gamma", "even"]
BatchingName = Literal["continuous", "static"]


class RateSpec(Spec):
    """A stretch of time and how many requests come in it; the last one goes on."""

    requests_per_s: float = Field(ge=0)
    until: Seconds | None = Field(default=None, description="its end, from the beginning of all")


class RequestsSpec(Spec):
    """Requests of a file, or made up: arrivals at a rate, lengths log-normal around their means."""

    file: str | None = Field(
        default=None,
        description="Azure, Mooncake or BurstGPT trace, folder of ServeGen's clients, or columns arrival_s, "
        "input_tokens, output_tokens and, if known, cached_tokens of the prompt that need no prefill",
    )
    first: int | None = Field(default=None, gt=0, description="so many requests of the file")
    speed: float = Field(default=1.0, gt=0, description="file: requests come so many times faster")
    prefix_cache: Literal["unlimited"] | Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="file with hash_ids: tokens that a cache of prefixes holds, the least recent leave"
    )
    requests_per_s: float | None = Field(default=None, gt=0)
    rates: tuple[RateSpec, ...] = Field(default=(), description="instead of requests_per_s, one after another")
    n: int = Field(default=1000, gt=0, description="made-up requests")
    arrivals: ArrivalName = "poisson"
    arrival_cv: float = Field(default=2.0, gt=0, description="gamma: deviation over mean of the time between requests")
    input_tokens: int = Field(default=1024, gt=0, description="mean length of a prompt")
    output_tokens: int = Field(default=256, gt=0, description="mean length of an answer")
    length_cv: float = Field(default=0.8, ge=0, description="deviation over mean of both lengths")

    @property
    def all_rates(self) -> tuple[RateSpec, ...]:
        """Rates of made-up requests, none of those of a file."""
        return self.rates or ((RateSpec(requests_per_s=self.requests_per_s),) if self.requests_per_s else ())

    @model_validator(mode="after")
    def _one_origin(self) -> RequestsSpec:
        if (self.file is not None) + (self.requests_per_s is not None) + bool(self.rates) != 1:
            raise ValueError("give either file: FILE or requests_per_s: 8 or rates: [{until: 60 s, requests_per_s: 8}]")
        if self.prefix_cache is not None and self.file is None:
            raise ValueError("prefix_cache needs a file whose requests name the blocks of their prompts (hash_ids)")
        return self

    @model_validator(mode="after")
    def _rates_follow(self) -> RequestsSpec:
        *before, last = (rate.until for rate in self.rates or (RateSpec(requests_per_s=1),))
        ends = [0.0, *(-1.0 if end is None else end for end in before)]
        if any(later <= earlier for earlier, later in pairwise(ends)) or last is not None:
            raise ValueError(
                "rates: every one but the last has an until, later than the one before it; the last has none"
            )
        if self.rates and self.rates[-1].requests_per_s == 0:
            raise ValueError(
                "rates: the last one goes on for all requests that are left, and 0 requests_per_s never ends"
            )
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


class EngineSpec(Spec):
    """Devices, plan and limits of one side of a disaggregated load; what is left out is that of the scenario."""

    cluster: ClusterSpec | None = None
    parallel: ParallelSpec | None = None
    placement: PlacementSpec | None = None
    schedule: ScheduleSpec | None = None
    token_budget: int | None = Field(default=None, gt=0)
    max_requests: int | None = Field(default=None, gt=0)
    kv_tokens: int | None = Field(default=None, gt=0)


class PrefillSpec(EngineSpec):
    """Engines that prefill alone, and how keys and values get from them to the engine that decodes."""

    engines: int = Field(default=1, gt=0, description="so many of them, each with a cluster of its own")
    transfer: Literal["layerwise", "whole"] = Field(
        default="layerwise", description="of a layer when it is computed, or of all of them after the prompt"
    )
    over: Literal["network", "node"] = Field(
        default="network", description="links between nodes, or those of the one node that both sides share"
    )


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
    batching: BatchingName = Field(
        default="continuous", description="static: a batch of max_requests is taken when idle, and finished whole"
    )
    cached_frac: float = Field(default=0.0, ge=0, lt=1, description="share of each prompt whose prefill is cached")
    router: RouterName = Field(default="round-robin", description="to which rank a request goes when it arrives")
    slo: SloSpec | None = None
    prefill: PrefillSpec | None = Field(default=None, description="prefill on devices of its own (disaggregation)")
    decode: EngineSpec | None = Field(default=None, description="with prefill: the side that decodes")
    routes: RoutesSpec | None = Field(default=None, description="default: requests have no routes of their own")
    rebalance: RebalanceSpec | None = None
    name: str | None = None

    def side(self, own: EngineSpec | None) -> ServingSpec:
        """What holds for one side of a disaggregated load."""
        names = ("token_budget", "max_requests", "kv_tokens")
        given = {} if own is None else {name: getattr(own, name) for name in names if getattr(own, name) is not None}
        return ServingSpec.model_validate(dict(self) | {"prefill": None, "decode": None} | given)

    @model_validator(mode="after")
    def _apart(self) -> ServingSpec:
        if self.prefill is None and self.decode is not None:
            raise ValueError("decode is a side of a disaggregated load: give prefill too")
        if self.prefill is not None and self.routes is not None:
            raise ValueError(
                "routes of requests and prefill on devices of its own do not go together yet: leave one out"
            )
        if self.prefill is not None and self.batching == "static":
            raise ValueError("batching: a static batch is prefilled and decoded by one engine; leave prefill out")
        for one in (self.prefill, self.decode):
            if one is not None:
                self.side(one)
        return self

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
