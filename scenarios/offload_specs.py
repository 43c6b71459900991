"""What a scenario says of experts that live in the host's memory: slots on the device, eviction, misses, prefetch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scenarios.sources import Spec

EvictionName = Literal["static", "lru", "lfu", "mrs", "sch", "belady"]
MissName = Literal["load", "host", "cheaper", "balanced"]
GuessName = Literal["oracle", "last", "popular", "learned", "noisy"]

UNGUIDED: frozenset[GuessName] = frozenset({"oracle", "last", "popular"})
"""Guesses that need nothing of the step before the layer that they are of; others leave the first layers out."""


class PrefetchSpec(Spec):
    """Experts that are copied to the device before the gate of their layer has spoken."""

    by: GuessName = Field(
        description="oracle: those that the layer will use; last: those of the step before; popular: the most used of "
        "the fitted part; learned: by what followed the layer's experts in the fitted part; noisy: the right ones with "
        "chance `recall`, filled up with wrong ones"
    )
    width: int | None = Field(default=None, gt=0, description="experts that are asked for; oracle, last: all they name")
    recall: float | None = Field(default=None, gt=0, le=1, description="noisy: chance that a used expert is named")
    lead: int = Field(default=1, gt=0, description="MoE layers ahead")

    @model_validator(mode="after")
    def _options(self) -> PrefetchSpec:
        if self.width is None and self.by not in ("oracle", "last"):
            raise ValueError(f"prefetch by {self.by} needs width: how many experts of a layer it asks for")
        if (self.recall is None) == (self.by == "noisy"):
            raise ValueError("recall belongs to prefetch by noisy, and noisy needs it: give {by: noisy, recall: 0.9}")
        return self


class OffloadSpec(Spec):
    """All routed experts live in the host's memory; a device has slots for some of each layer."""

    slots: int | None = Field(default=None, ge=0, description="experts of a layer that a device holds")
    share: float | None = Field(default=None, ge=0, le=1, description="the same as a share of the experts placed on it")
    whole_layers: int = Field(default=0, ge=0, description="first MoE layers that keep all of their experts (Fate)")
    evict: EvictionName = Field(
        default="lru",
        description="who leaves: nobody; the least recently or least frequently used; the lowest mean router score "
        "(HybriMoE); the fewest uses in the next `window` steps (moe-lrc); the latest next use",
    )
    start: Literal["popular", "first"] = Field(
        default="popular", description="who is there at first: the most used of the fitted part, or the first ones"
    )
    window: int = Field(default=16, gt=0, description="sch: steps that it looks ahead")
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

    @model_validator(mode="after")
    def _options(self) -> OffloadSpec:
        if (self.slots is None) == (self.share is None):
            raise ValueError("give either slots: N or share: 0.25")
        if self.defer and self.miss == "load":
            raise ValueError("defer postpones what the host computes, and with miss: load it computes nothing")
        if self.miss == "host" and self.evict != "static" and self.prefetch is None:
            raise ValueError(
                f"with miss: host nothing is copied, so that evict {self.evict} never acts; give evict: static"
            )
        if self.prefetch is not None and self.evict == "static":
            raise ValueError("evict: static lets nobody in, so that a prefetch has no place; choose another rule")
        return self
