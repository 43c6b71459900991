"""What a scenario says of schedules and exchanges. A conformance test compares the names with the implementations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from scenarios.models import DType
from scenarios.sources import Spec
from scenarios.units import Seconds

OverlapName = Literal["none", "chunked", "two-batch", "prefetch"]
LawName = Literal["port", "fifo", "maxmin"]
DedupName = Literal["none", "device", "node"]
FittedKernelName = Literal["deepep-normal", "deepep-low-latency", "nvl72-one-sided", "nvl72-two-sided"]
KernelName = Literal["alpha-beta", "nccl"] | FittedKernelName
KERNEL_DEDUP: dict[str, DedupName] = {
    "deepep-normal": "node",
    "deepep-low-latency": "none",
    "nvl72-one-sided": "device",
    "nvl72-two-sided": "device",
}
"""What each fitted kernel sends once: a copy of a token for every expert, device or node."""


class ExchangeSpec(Spec):
    """How tokens travel: law of link sharing, what is sent once, and the kernel that sends it.

    Kernels but alpha-beta were fitted to measured times. They decide themselves what is sent once, and want law port.
    """

    law: LawName = "port"
    kernel: KernelName = Field(default="alpha-beta", description="alpha-beta: the link's latency and bandwidth alone")
    sms: int | None = Field(default=None, gt=0, description="deepep-normal: SMs that it takes; default: 20")
    dedup: DedupName = Field(
        default="device", description="a token is sent once per expert, device or node; fitted kernels have their own"
    )
    dispatch_dtype: DType | None = Field(default=None, description="default: the model's activation_dtype")
    combine_dtype: DType | None = Field(default=None, description="default: the model's activation_dtype")

    @model_validator(mode="before")
    @classmethod
    def _kernels_dedup(cls, raw: Any) -> Any:
        own = KERNEL_DEDUP.get(raw.get("kernel", "")) if isinstance(raw, dict) else None
        return raw if own is None else {"dedup": own, **raw}

    @model_validator(mode="after")
    def _one_kernel(self) -> ExchangeSpec:
        own = KERNEL_DEDUP.get(self.kernel, self.dedup)
        if self.dedup != own:
            raise ValueError(f"kernel {self.kernel} has dedup {own}, not {self.dedup}; leave dedup out")
        if self.kernel != "alpha-beta" and self.law != "port":
            raise ValueError(f"kernel {self.kernel} is timed as a whole: law port, not {self.law}")
        if self.sms is not None and self.kernel != "deepep-normal":
            raise ValueError(f"sms is an option of kernel deepep-normal, not of {self.kernel}")
        return self


class PayloadSpec(Spec):
    """Tokens that look alike travel as one: compression by locality-sensitive hashing (LSH-MoE, NeurIPS 2024)."""

    rate: float = Field(gt=0, le=1, description="clusters over tokens, of each device and expert")
    hashes: int = Field(default=6, gt=0, description="hash functions, each a rotation of every token")


MOVING: tuple[OverlapName, ...] = ("none", "chunked", "prefetch")
"""Policies that know experts which move."""


class MoveSpec(Spec):
    """Experts move instead of tokens. With overlap prefetch they are asked for one layer ahead, all of them."""

    kind: Literal["shadow", "pull", "auto"] = Field(
        description="shadow: the hottest go to all devices while that pays (FasterMoE); pull: each device fetches what "
        "its tokens need (Janus); auto: pull in layers where that is fewer bytes"
    )


class ScheduleSpec(Spec):
    """A schedule policy with its options."""

    overlap: OverlapName = "none"
    chunks: int = Field(
        default=2, ge=1, description="chunked: parts of the experts' tokens; two-batch: microbatches of the whole step"
    )
    exchange: ExchangeSpec = ExchangeSpec()
    payload: PayloadSpec | None = None
    move: MoveSpec | None = None
    chunks_by: Literal["tokens", "peers"] = Field(
        default="tokens",
        description="chunked: parts of a device's tokens, or groups of devices that exchange at a stride (FasterMoE)",
    )
    executor: Literal["vector", "event"] = "vector"
    step_overhead: Seconds = Field(default=0.0, description="host time between steps")
    launch: Literal["graph", "eager"] = Field(
        default="graph", description="kernels replayed as a CUDA graph, or launched one by one by the host"
    )
    name: str | None = None

    @model_validator(mode="after")
    def _one_copy_an_expert(self) -> ScheduleSpec:
        self._check_moves()
        if self.chunks_by == "peers" and (self.overlap, self.exchange.dedup) != ("chunked", "none"):
            raise ValueError("chunks_by peers needs overlap chunked and exchange: {dedup: none}")
        if self.payload is not None and self.exchange.dedup != "none":
            raise ValueError(
                f"payload: a cluster belongs to one expert, which exchange.dedup {self.exchange.dedup} does not fit; "
                "give exchange: {dedup: none}"
            )
        return self

    def _check_moves(self) -> None:
        if self.move is None:
            if self.overlap == "prefetch":
                raise ValueError("overlap prefetch fetches experts: give move: {kind: pull} or {kind: auto}")
            return
        if self.overlap not in MOVING:
            raise ValueError(f"move needs overlap {', '.join(MOVING)}, not {self.overlap}")
        if self.overlap == "prefetch" and self.move.kind == "shadow":
            raise ValueError("shadowed experts are known after the gate: overlap none or chunked, not prefetch")
        if self.payload is not None:
            raise ValueError("move and payload do not go together; leave one out")
        if self.exchange.dedup != "none":
            raise ValueError(
                f"move: tokens of an expert stay while others of the same token travel, which exchange.dedup "
                f"{self.exchange.dedup} does not tell apart; give exchange: {{dedup: none}}"
            )

    @property
    def transforms_loads(self) -> bool:
        """Whether the schedule changes which tokens travel to which expert, or how many rows stand for them."""
        return self.payload is not None or self.move is not None or self.chunks_by == "peers"

    @property
    def n_parts(self) -> int:
        """Parts that the tokens of a device travel in."""
        return 1 if self.overlap in ("none", "prefetch") else self.chunks
