"""What a scenario says of machines, and of how attention and experts are laid out on them."""

from __future__ import annotations

from pydantic import Field

from scenarios.sources import Spec
from scenarios.units import BytesPerS, Seconds


class ClusterSpec(Spec):
    """Nodes of one kind. `node` names a node card; the other fields override parts of it."""

    node: str
    nodes: int = Field(default=1, gt=0)
    device: str | None = Field(default=None, description="device card instead of the node's own")
    devices_per_node: int | None = Field(default=None, gt=0)
    cards: str | None = Field(default=None, description="file of hardware cards that come before the shipped ones")
    kernels: str | None = Field(default=None, description="kernel card or its file, instead of the device's own")
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


class AttentionParallelSpec(Spec):
    """Layout of attention: `dp` replicas of `tp` devices each."""

    dp: int = Field(gt=0)
    tp: int = Field(default=1, gt=0)


class ExpertParallelSpec(Spec):
    """Layout of experts: `ep` ranks of `tp` devices each."""

    ep: int = Field(gt=0)
    tp: int = Field(default=1, gt=0)


class ParallelSpec(Spec):
    """Parallel layout; left out, attention is data parallel and experts are spread over all devices."""

    attention: AttentionParallelSpec | None = None
    experts: ExpertParallelSpec | None = None
