"""What a scenario says of an engine that changes under load: scaling, a controller, failures, times of stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scenarios.placement_specs import PlacementSpec
from scenarios.sources import Kind, Spec
from scenarios.units import BytesPerS, Seconds

MethodName = Literal["elastic-moe", "cold-restart", "horizontal", "extravagant", "colocated"]
Part = Literal["ipc-allocation", "connection-reuse", "pre-initialised", "zero-copy"]
SHARING: tuple[MethodName, ...] = ("elastic-moe", "cold-restart", "colocated")
"""Methods whose new engine stands on the devices of the old one."""

STAGES: dict[str, tuple[Kind, str]] = {
    "start": ("published", "ElasticMoE (arXiv 2510.02613), ablation: engine processes that were not started before"),
    "communicator": ("published", "ElasticMoE (arXiv 2510.02613), ablation: connections that are not reused"),
    "allocate": ("published", "ElasticMoE (arXiv 2510.02613), ablation: memory that processes cannot share"),
    "warm_up_per_layer": ("published", "ElasticMoE (arXiv 2510.02613): 4.2 s of Qwen3-30B-A3B, over its 48 layers"),
    "remap": ("assumed", "mapping the pages of one expert and giving access to them"),
    "disk_bandwidth": ("assumed", "sequential reads of one PCIe 4 NVMe drive a node"),
    "detect": ("assumed", "a second without a heartbeat"),
    "regroup": ("assumed", "exchanges mask dead ranks, as expert-parallel kernels with timeouts do"),
}
"""Where the times of `StagesSpec` come from."""


class StagesSpec(Spec):
    """What stages of a reconfiguration take beside the bytes that they move; sources: `STAGES`."""

    start: Seconds = Field(default=52.0, description="an engine's processes, up to where weights are loaded")
    communicator: Seconds = Field(default=8.0, description="connections of all devices with each other")
    allocate: Seconds = Field(default=0.7, description="buffers anew, without memory that processes can share")
    warm_up_per_layer: Seconds = Field(default=0.0875, description="first run of the new engine, a layer")
    remap: Seconds = Field(default=20e-6, description="pages of an expert that came or went")
    disk_bandwidth: BytesPerS = Field(default=7e9, description="reads of a node's disk, all devices together")
    detect: Seconds = Field(default=1.0, description="from a failure until the others know of it")
    regroup: Seconds = Field(default=0.0, description="survivors, until they go on without the dead")
    weights: Literal["disk", "host"] = Field(default="disk", description="where weights come from that no device holds")


class ScaleEventSpec(Spec):
    """A change at a time: another number of devices, another placement, or both."""

    at: Seconds
    devices: int | None = Field(default=None, gt=0, description="devices from then on, all replicas together")
    placement: PlacementSpec | None = Field(default=None, description="default: the one in force, least changed")

    @model_validator(mode="after")
    def _any(self) -> ScaleEventSpec:
        if self.devices is None and self.placement is None:
            raise ValueError("give devices: 8, placement: {...}, or both")
        return self


class ControllerSpec(Spec):
    """Devices by what is observed: more where requests wait or miss their limits, fewer where batches are empty."""

    slo_attainment: float | None = Field(
        default=None, gt=0, le=1, description="more devices where fewer requests of the window meet serving.slo"
    )
    queue: int | None = Field(default=None, gt=0, description="more devices where more requests wait")
    window: Seconds = Field(default=10.0, gt=0, description="over which requests are looked at")
    every: Seconds = Field(default=1.0, gt=0, description="time between two looks")
    calm: float = Field(
        default=0.3, ge=0, lt=1, description="fewer devices where so small a share of batches is filled"
    )

    @model_validator(mode="after")
    def _one(self) -> ControllerSpec:
        if (self.slo_attainment is None) == (self.queue is None):
            raise ValueError("give either slo_attainment: 0.9 or queue: 50")
        return self


class ScalingSpec(Spec):
    """How an engine gets more or fewer devices while it serves."""

    method: MethodName = "elastic-moe"
    without: tuple[Part, ...] = Field(default=(), description="elastic-moe: parts of it that are missing")
    events: tuple[ScaleEventSpec, ...] = ()
    controller: ControllerSpec | None = None
    least: int = Field(default=1, gt=0, description="controller: fewest devices")
    most: int | None = Field(default=None, gt=0, description="controller: most devices; default: all that there are")
    by: int = Field(default=1, gt=0, description="controller: devices that come or go at once")
    cooldown: Seconds = Field(default=30.0, description="controller: from a change until the next")
    nodes: int | None = Field(default=None, gt=0, description="nodes that there are; default: cluster.nodes")
    gate: bool = Field(default=True, description="elastic-moe: new requests wait until the new devices serve")
    kv: Literal["move", "recompute"] = Field(
        default="recompute", description="requests of devices that go: their cache moves, or they come back as prompts"
    )
    window: tuple[Seconds, Seconds] | None = Field(
        default=None, description="of the metrics `during`; default: from the first change until the last is ready"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ScalingSpec:
        if self.without and self.method != "elastic-moe":
            raise ValueError(f"without names parts of elastic-moe, and the method is {self.method}")
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most {self.most} is below least {self.least}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window: give two times, the earlier first")
        return self


class LinkSpec(Spec):
    """The network of a node."""

    node: int = Field(ge=0)


class FailureSpec(Spec):
    """A device dies, or a node loses its network."""

    at: Seconds
    device: int | None = Field(default=None, ge=0, description="as numbered at the beginning, node by node")
    link: LinkSpec | None = None

    @model_validator(mode="after")
    def _one(self) -> FailureSpec:
        if (self.device is None) == (self.link is None):
            raise ValueError("give either device: 3 or link: {node: 0}")
        return self
