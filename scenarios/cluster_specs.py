"""What a scenario says of machines, and of how attention and experts are laid out on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from scenarios.sources import Spec
from scenarios.units import BytesPerS, Seconds


class ClusterSpec(Spec):
    """Nodes of one kind. `node` names a node card; the other fields override parts of it."""

    node: str = Field(description="node card; see `moesim list hardware`")
    nodes: int = Field(default=1, gt=0, description="nodes of this kind")
    device: str | None = Field(default=None, description="device card instead of the node's own")
    devices_per_node: int | None = Field(default=None, gt=0, description="default: all devices of the node card")
    cards: str | None = Field(default=None, description="file of hardware cards that come before the shipped ones")
    kernels: str | None = Field(default=None, description="kernel card or its file, instead of the device's own")
    experts_slowdown: float = Field(
        default=1.0, ge=1, description="times that experts take as long as their law says, by your own measurement"
    )
    intra_bandwidth: BytesPerS | None = Field(default=None, description="per device and direction, inside a node")
    inter_bandwidth: BytesPerS | None = Field(default=None, description="per device and direction, between nodes")
    intra_message: Seconds | None = Field(default=None, description="time of a message beside its bytes, inside a node")
    inter_message: Seconds | None = Field(default=None, description="the same between nodes")
    host: str | None = Field(default=None, description="host card instead of the node's own")
    host_bandwidth: BytesPerS | None = Field(default=None, description="per device and direction, to and from its host")
    host_message: Seconds | None = Field(default=None, description="time of a copy beside its bytes, the same")
    host_memory_bandwidth: BytesPerS | None = Field(default=None, description="nominal, of a host's DRAM, all sockets")
    sustained_frac: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the device's peak FLOP/s that it sustains, as under a power limit",
    )
    experts: ClusterSpec | None = Field(
        default=None, description="nodes that hold the experts alone, while those above hold attention and all else"
    )

    @model_validator(mode="after")
    def _two_pools(self) -> ClusterSpec:
        if self.experts is not None and self.experts.experts is not None:
            raise ValueError("there are two pools, of attention and of experts: give no experts of experts")
        return self


class AttentionParallelSpec(Spec):
    """Layout of attention: `pp` stages of `dp` replicas of `cp` x `tp` devices each."""

    dp: int = Field(gt=0, description="replicas of attention, each with requests of its own (data parallelism)")
    tp: int = Field(default=1, gt=0, description="devices that share the heads (tensor parallelism)")
    cp: int = Field(default=1, gt=0, description="devices that share the tokens of a sequence (context parallelism)")
    pp: int = Field(default=1, gt=0, description="pipeline stages")


class ExpertParallelSpec(Spec):
    """Layout of experts: `pp` stages of `edp` replicas of `ep` ranks of `tp` devices each."""

    ep: int = Field(gt=0, description="ranks that the experts of a layer are spread over (expert parallelism)")
    tp: int = Field(default=1, gt=0, description="devices that share each expert")
    edp: int = Field(default=1, gt=0, description="replicas of all experts of a stage (expert data parallelism)")
    pp: int = Field(default=1, gt=0, description="pipeline stages, those of attention")
    folded: bool = Field(
        default=True,
        description="expert groups are neighbours; false: replicas of attention at a stride of its tp x cp, as in "
        "Megatron-Core before folding, where the experts' tp is that of attention",
    )


class ParallelSpec(Spec):
    """Parallel layout; left out, attention is data parallel and experts are spread over all devices."""

    attention: AttentionParallelSpec | None = None
    experts: ExpertParallelSpec | None = None
    stage_layers: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="layers of each part of the model that a pipeline stage holds; default: as many each"
    )
