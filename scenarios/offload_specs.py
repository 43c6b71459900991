"""What a scenario says of experts that live in the host's memory: slots on the device, eviction, misses, prefetch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scenarios.models import DType
from scenarios.sources import Spec
from scenarios.units import Bytes

EvictionName = Literal["static", "lru", "lfu", "arc", "mrs", "hobbit", "sch", "belady"]
MissName = Literal["load", "host", "cheaper", "balanced"]
HostEvictionName = Literal["static", "lru", "lfu", "arc", "belady"]
ReplayName = Literal["event-atomic", "per-access"]
GuessName = Literal["oracle", "last", "popular", "learned", "activation", "noisy"]

UNGUIDED: frozenset[GuessName] = frozenset({"oracle", "last", "popular", "activation"})
"""Guesses that need nothing of the step before the layer that they are of; others leave the first layers out."""

CANCELS = ("demand-first", "event-atomic")
"""Priority and contract under which a prefetch can be given up."""
LEARNED: frozenset[GuessName] = frozenset({"popular", "learned", "activation"})
"""Guesses that are nothing but what the fitted part says."""


class PrefetchSpec(Spec):
    """Experts that are copied to the device before the gate of their layer has spoken."""

    by: GuessName = Field(
        description="oracle: those that the layer will use; last: those of the step before; popular: the most used of "
        "the fitted part; learned: by what followed the layer's experts in the fitted part; activation: those of the "
        "fitted sequence most like the request so far (MoE-Infinity); noisy: the right ones with chance `recall`, "
        "filled up with wrong ones"
    )
    width: int | None = Field(default=None, gt=0, description="experts that are asked for; oracle, last: all they name")
    recall: float | None = Field(default=None, gt=0, le=1, description="noisy: chance that a used expert is named")
    lead: int = Field(default=1, gt=0, description="MoE layers ahead")
    cancel: bool = Field(
        default=False,
        description="with priority demand-first: once the gate has spoken, what is not yet copied of experts that it "
        "does not name is given up, and none of them keeps a slot",
    )

    @model_validator(mode="after")
    def _options(self) -> PrefetchSpec:
        if self.width is None and self.by not in ("oracle", "last"):
            raise ValueError(f"prefetch by {self.by} needs width: how many experts of a layer it asks for")
        if (self.recall is None) == (self.by == "noisy"):
            raise ValueError("recall belongs to prefetch by noisy, and noisy needs it: give {by: noisy, recall: 0.9}")
        return self


class GradesSpec(Spec):
    """What a miss is copied in, by the gate weights of the experts that come before it in a token (HOBBIT)."""

    high: float = Field(default=0.6, ge=0, le=1, description="up to this sum: the model's own precision")
    low: float = Field(default=0.9, ge=0, le=1, description="up to this sum: `dtype`; beyond it the expert is left out")
    dtype: DType = "int4"
    slots: int = Field(
        default=0, ge=0, description="experts in `dtype` that a device holds of a layer (pool model: all)"
    )

    @model_validator(mode="after")
    def _ascending(self) -> GradesSpec:
        if self.high > self.low:
            raise ValueError(f"grades: high {self.high} exceeds low {self.low}; both are sums of gate weights")
        return self


class OffloadSpec(Spec):
    """All routed experts live in the host's memory; a device has slots for some of each layer."""

    slots: int | None = Field(default=None, ge=0, description="experts of a layer (pool model: of all) on a device")
    share: float | None = Field(default=None, ge=0, le=1, description="the same as a share of the experts placed on it")
    pool: Literal["layer", "model"] = Field(
        default="layer", description="layer: every layer has slots of its own; model: all layers of a device share them"
    )
    whole_layers: int = Field(default=0, ge=0, description="first MoE layers that keep all of their experts (Fate)")
    evict: EvictionName = Field(
        default="lru",
        description="who leaves: nobody; the least recently or least frequently used; both, by what returns (ARC); "
        "the lowest mean router score (HybriMoE); the lowest of four weighted terms (HOBBIT); the fewest uses in the "
        "next `window` steps (moe-lrc); the latest next use",
    )
    start: Literal["popular", "first"] = Field(
        default="popular", description="who is there at first: the most used of the fitted part, or the first ones"
    )
    window: int = Field(default=16, gt=0, description="sch: steps that it looks ahead")
    terms: tuple[float, float, float, float] = Field(
        default=(0.25, 0.25, 0.25, 0.25),
        description="hobbit: weights of last use, uses, uses in high precision, and nearness of its layer",
    )
    decay: float = Field(default=0.5, gt=0, le=1, description="mrs: weight of the newest scores")
    miss: MissName = Field(
        default="load",
        description="load: copy it; host: the host's cores compute it; cheaper: whichever is sooner for this expert "
        "(Fiddler); balanced: the split of a layer's misses at which copies and host end soonest (HybriMoE)",
    )
    defer: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the host's work whose results join one layer later (KTransformers)",
    )
    cores: int | None = Field(default=None, gt=0, description="cores of the host for experts; default: all of a node")
    prefetch: PrefetchSpec | None = None
    grades: GradesSpec | None = None
    replay: ReplayName = Field(
        default="event-atomic",
        description="what a step asks of a layer is judged against the slots as they stand, all at once; per-access: "
        "one expert after another, in ascending order, each served and given its slot before the next",
    )
    host_memory: Bytes | None = Field(
        default=None, gt=0, description="of each host, for experts; default: all that its card states"
    )
    ssd: str | None = Field(
        default=None,
        description="card of the drive of each host, which holds all experts; the host's memory caches them",
    )
    host_evict: HostEvictionName = Field(default="lru", description="with ssd: who leaves the host's memory")
    ssd_queue: int = Field(default=32, gt=0, description="requests to the drive in flight")
    packet: Bytes | None = Field(default=None, gt=0, description="most that one copy moves; default: a whole expert")
    priority: Literal["fifo", "demand-first"] = Field(
        default="fifo",
        description="fifo: copies stand in one queue; demand-first: missed experts, and those asked for ahead that the "
        "gate has named, pass the others after every packet",
    )

    @model_validator(mode="after")
    def _one_by_one(self) -> OffloadSpec:
        rules = {"evict": ("mrs", "hobbit"), "miss": ("cheaper", "balanced")}
        whole = [f"{name} {getattr(self, name)}" for name, ruled in rules.items() if getattr(self, name) in ruled]
        whole += ["grades"] if self.grades is not None else []
        if self.replay == "per-access" and whole:
            raise ValueError(f"{', '.join(whole)}: decided for all experts of a step at once; use replay: event-atomic")
        return self

    @model_validator(mode="after")
    def _drive(self) -> OffloadSpec:
        if self.ssd is not None and self.grades is not None:
            raise ValueError("ssd and grades do not go together yet: a drive has one precision; leave one out")
        if self.ssd is None and (self.host_evict != "lru" or self.ssd_queue != 32):
            raise ValueError("host_evict and ssd_queue are of experts on a drive: name its card, ssd: samsung-980-pro")
        return self

    @model_validator(mode="after")
    def _options(self) -> OffloadSpec:
        if self.grades is not None and self.miss != "load":
            raise ValueError(
                f"grades say in what precision a miss is copied, and miss {self.miss} computes some: use miss: load"
            )
        if (self.slots is None) == (self.share is None):
            raise ValueError("give either slots: N or share: 0.25")
        if self.defer and self.miss == "load":
            raise ValueError("defer postpones what the host computes, and with miss: load it computes nothing")
        if self.miss == "host" and self.evict != "static" and self.prefetch is None:
            raise ValueError(
                f"with miss: host nothing is copied, so that evict {self.evict} never acts; give evict: static"
            )
        if self.pool == "model" and (self.whole_layers or self.evict == "mrs"):
            raise ValueError("pool model has no layers that keep all, and mrs ages by a layer's steps; use pool layer")
        if self.prefetch is not None and self.evict == "static":
            raise ValueError("evict: static lets nobody in, so that a prefetch has no place; choose another rule")
        if self.priority == "demand-first" and self.prefetch is None:
            raise ValueError("demand-first lets missed experts pass those asked for ahead; give a prefetch, or fifo")
        if self.prefetch is not None and self.prefetch.cancel and (self.priority, self.replay) != CANCELS:
            raise ValueError("prefetch.cancel needs priority: demand-first, and replay: event-atomic")
        return self
