"""What a scenario says of schedules and exchanges. A conformance test compares the names with the implementations."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scenarios.models import DType
from scenarios.sources import Spec
from scenarios.stream_specs import GENERATING, StreamingName
from scenarios.units import Bytes, Seconds

ResidentName = Literal[
    "none",
    "chunked",
    "two-batch",
    "two-batch-prefill",
    "two-batch-decode",
    "tiles",
    "persistent",
    "prefetch",
    "ping-pong",
]
"""Schedules of weights that stay where they are."""
OverlapName = Literal[ResidentName, StreamingName]
PipelineName = Literal["gpipe", "1f1b", "interleaved", "zb1p", "dualpipe"]
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
AlgorithmName = Literal["direct", "hierarchical", "sliced", "all-gather", "coherent"]
ALGORITHM_DEDUP: dict[str, DedupName] = {"hierarchical": "none", "all-gather": "node"}
"""What the algorithms of alpha-beta send: buffers with a row for every choice, or every token to every node once."""
FUSED: frozenset[OverlapName] = frozenset({"tiles", "persistent"})
"""Kernels that move tokens themselves, in tiles."""
PAIRED: frozenset[OverlapName] = frozenset({"two-batch-prefill", "two-batch-decode"})
"""Published orders of exactly two microbatches."""


class ExchangeSpec(Spec):
    """How tokens travel: law of link sharing, what is sent once, and the kernel that sends it.

    Kernels but alpha-beta were fitted to measured times. They decide themselves what is sent once, and want law port;
    so do the algorithms but direct.
    """

    algorithm: AlgorithmName = Field(
        default="direct",
        description="hierarchical: inside nodes, then between devices of one number (2DH); sliced: to one device of a "
        "tensor-parallel expert, gathered inside its group (ESP); all-gather: every token to everyone; coherent: "
        "directly, and tokens stay where their expert is, since every device holds all contexts (ExFlow)",
    )
    inside: Literal["own", "shared"] = Field(
        default="own", description="lanes of stages inside nodes: their own, or those of the exchange (one stream)"
    )

    law: LawName = Field(default="port", description="how messages share links")
    kernel: KernelName = Field(default="alpha-beta", description="alpha-beta: the link's latency and bandwidth alone")
    sms: int | None = Field(default=None, gt=0, description="deepep-normal: SMs that it takes; default: 20")
    dedup: DedupName = Field(
        default="device", description="a token is sent once per expert, device or node; fitted kernels have their own"
    )
    dispatch_dtype: DType | None = Field(default=None, description="default: the model's activation_dtype")
    combine_dtype: DType | None = Field(default=None, description="default: the model's activation_dtype")

    @model_validator(mode="before")
    @classmethod
    def _own_dedup(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        own = KERNEL_DEDUP.get(raw.get("kernel", "")) or ALGORITHM_DEDUP.get(raw.get("algorithm", ""))
        return raw if own is None else {"dedup": own, **raw}

    @model_validator(mode="after")
    def _one_algorithm(self) -> ExchangeSpec:
        if self.algorithm != "direct" and (self.kernel, self.law) != ("alpha-beta", "port"):
            raise ValueError(
                f"algorithm {self.algorithm} has kernel alpha-beta and law port, not {self.kernel} and {self.law}"
            )
        own = ALGORITHM_DEDUP.get(self.algorithm, self.dedup)
        if self.dedup != own:
            raise ValueError(f"algorithm {self.algorithm} has dedup {own}, not {self.dedup}; leave dedup out")
        if self.algorithm == "sliced" and self.dedup == "node":
            raise ValueError("algorithm sliced has dedup none or device, not node: its groups are inside nodes already")
        if self.inside != "own" and self.algorithm not in ("hierarchical", "sliced"):
            raise ValueError(f"algorithm {self.algorithm} has no stages inside nodes; leave inside out")
        return self

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


GradientOrder = Literal["after", "overlapped", "priority", "fill"]
TRAINED: tuple[OverlapName, ...] = ("none", "chunked")
"""Policies that know a backward pass."""


class GradientsSpec(Spec):
    """Where sums of gradients stand among the exchanges of a backward pass, on the ports that they share."""

    order: GradientOrder = Field(
        default="overlapped",
        description="after the backward pass; overlapped: as soon as gradients are there; priority: tokens go "
        "first, one piece beside each computation (Lina); fill: pieces as long as the ports idle (FSMoE)",
    )
    partition: Bytes | None = Field(
        default=None, gt=0, description="largest piece that a sum is cut into; default: a layer's gradients are one"
    )

    @model_validator(mode="after")
    def _own_pieces(self) -> GradientsSpec:
        if self.order == "fill" and self.partition is not None:
            raise ValueError("order fill cuts sums of gradients to the ports' idle time: leave partition out")
        return self


class ScheduleSpec(Spec):
    """A schedule policy with its options."""

    overlap: OverlapName = Field(default="none", description="the policy; see `moesim list policies`")
    chunks: int = Field(
        default=2,
        ge=1,
        description="chunked: parts of the experts' tokens; two-batch, ping-pong, generating: microbatches of all of "
        "the step",
    )
    microbatch: int | None = Field(
        default=None,
        gt=0,
        description="generating schedules: requests of each of the `chunks` microbatches; a pass has so many together",
    )
    tiles: int = Field(default=16, ge=1, description="tiles, persistent: parts that rows (and columns) are cut into")
    sms: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        default="auto", description="tiles: SMs that move tokens instead of multiplying; auto: the best by closed form"
    )
    exchange: ExchangeSpec = ExchangeSpec()
    payload: PayloadSpec | None = None
    encode: Literal["index", "einsum"] = Field(
        default="index",
        description="how tokens get into the buffers of experts: by index, or by a dense product with a mask (GShard, "
        "Fairseq)",
    )
    move: MoveSpec | None = None
    gradients: GradientsSpec = Field(default=GradientsSpec(), description="of workload.phase train")
    chunks_by: Literal["tokens", "peers"] = Field(
        default="tokens",
        description="chunked: parts of a device's tokens, or groups of devices that exchange at a stride (FasterMoE)",
    )
    pim: Literal["none", "by-operation", "co-processing"] = Field(
        default="none",
        description="PIM units in the device's memory: by-operation: attention of requests and the experts of a layer "
        "each where they are faster; co-processing: experts split between both, attention of prompts beside that of "
        "requests (Duplex)",
    )
    executor: Literal["vector", "event"] = Field(
        default="vector", description="all devices and steps at once, or one by one in SimPy: the same times"
    )
    pipeline: PipelineName | None = Field(
        default=None, description="order of a stage's passes where parallel.*.pp is above 1; default: 1f1b"
    )
    stage_chunks: int = Field(default=2, ge=2, description="interleaved: parts of the model that a stage holds")
    step_overhead: Seconds = Field(default=0.0, description="host time between steps")
    layer_overhead: Seconds = Field(
        default=0.0, description="time of an engine outside kernels in every layer, while the device waits for it"
    )
    launch: Literal["graph", "eager"] = Field(
        default="graph", description="kernels replayed as a CUDA graph, or launched one by one by the host"
    )
    kernels_per_layer: int | None = Field(
        default=None, gt=0, description="eager: kernels that an MoE layer launches, gate to combine; default: our count"
    )
    name: str | None = None
    search: tuple[ScheduleSpec, ...] = Field(
        default=(),
        description="schedules to choose the best of; an entry takes the keys beside `search` that it leaves out, and "
        "a list for an option stands for each of its values",
    )

    @model_validator(mode="before")
    @classmethod
    def _every_choice(cls, raw: Any) -> Any:
        entries = raw.get("search") if isinstance(raw, dict) else None
        if not isinstance(entries, list):
            return raw
        if not entries:
            raise ValueError("search is empty: list schedules, such as {overlap: chunked, chunks: [2, 4]}")
        own = {key: value for key, value in raw.items() if key not in ("search", "name")}
        return {**raw, "search": [choice for entry in entries for choice in _choices(own, entry)]}

    @model_validator(mode="before")
    @classmethod
    def _messages_of_packets(cls, raw: Any) -> Any:
        """A persistent kernel waits for messages, not for the group: law fifo unless the scenario says otherwise."""
        if not isinstance(raw, dict) or raw.get("overlap") != "persistent":
            return raw
        exchange = raw.get("exchange", {})
        return {**raw, "exchange": {"law": "fifo", **exchange}} if isinstance(exchange, dict) else raw

    @model_validator(mode="after")
    def _fitting_options(self) -> ScheduleSpec:
        if any(choice.search for choice in self.search):
            raise ValueError("a search within a search: list all schedules in one")
        if self.overlap in PAIRED and self.chunks != 2:
            raise ValueError(f"overlap {self.overlap} orders 2 microbatches, not {self.chunks}: leave chunks out")
        if self.overlap == "vslpipe" and self.chunks != 2:
            raise ValueError(f"overlap vslpipe has 2 groups of requests, not {self.chunks}: leave chunks out")
        if self.microbatch is not None and self.overlap not in GENERATING:
            raise ValueError(f"microbatch is an option of {', '.join(sorted(GENERATING))}, not of {self.overlap}")
        if self.overlap in FUSED and self.exchange.kernel != "alpha-beta":
            raise ValueError(
                f"overlap {self.overlap} moves tokens in its own kernel: leave exchange.kernel "
                f"({self.exchange.kernel}) out"
            )
        if self.overlap in FUSED and self.exchange.algorithm != "direct":
            raise ValueError(
                f"overlap {self.overlap} sends each tile directly, not by algorithm {self.exchange.algorithm}: leave "
                "exchange.algorithm out"
            )
        if self.overlap != "tiles" and self.sms != "auto":
            raise ValueError(f"sms is an option of overlap tiles, not of {self.overlap}")
        if self.pim != "none" and (self.overlap, self.launch, self.transforms_loads) != ("none", "graph", False):
            raise ValueError(
                f"pim {self.pim} has an order of its own: leave overlap ({self.overlap}), move, payload and launch "
                f"({self.launch}) out"
            )
        if self.kernels_per_layer is not None and self.launch != "eager":
            raise ValueError("kernels_per_layer counts launches by the host: add launch: eager")
        return self

    @model_validator(mode="after")
    def _one_copy_an_expert(self) -> ScheduleSpec:
        self._check_moves()
        if self.transforms_loads and self.exchange.algorithm != "direct":
            raise ValueError(
                f"move, payload and chunks_by peers travel directly, not by algorithm {self.exchange.algorithm}; leave "
                "exchange.algorithm out"
            )
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
        """Parts that the tokens of a device are counted in; tiles are parts of one kernel and counted together."""
        return 1 if self.overlap in FUSED or self.overlap in ("none", "prefetch", "ring") else self.chunks

    @property
    def n_chunks(self) -> int:
        """Parts that the tokens of a device travel in."""
        return self.tiles if self.overlap in FUSED else self.n_parts


def _choices(own: dict[str, Any], entry: Any) -> list[Any]:
    """Every combination of the values that an entry of a search lists, completed by the schedule's own keys."""
    if not isinstance(entry, dict):
        return [entry]
    options = [value if isinstance(value, list) and key != "search" else [value] for key, value in entry.items()]
    return [{**own, **dict(zip(entry, values, strict=True))} for values in product(*options)]
