"""Hardware cards: what is known of a device, link, host or node, each number with its source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hwmodels.collectives import CollectiveCard
from hwmodels.copies import CopyCard
from hwmodels.expert_exchange import ExchangeCard
from hwmodels.fitted import Band
from hwmodels.host_constants import CpuConstants
from hwmodels.kernels import KernelCard
from scenarios.models import DType
from scenarios.sources import Sourced, Spec
from scenarios.units import Bytes, BytesPerS, Dollars, FlopPerS, Hertz, Joules, Seconds, Watts


class PimUnits(Spec):
    """Compute beside the DRAM banks or on the logic die, sharing the memory of the device that it belongs to."""

    memory_bytes_per_s: Sourced[BytesPerS]
    peak_flop_per_s: Sourced[FlopPerS]
    exclusive: Sourced[bool] = Field(description="the host device cannot use the memory while the units compute")
    spaces: Sourced[int] | None = Field(
        default=None, description="memory spaces that serve the units or the device, each one of them at a time"
    )
    read_j_per_byte: Sourced[Joules] | None = None
    flop_j: Sourced[Joules] | None = None


class DeviceCard(Spec):
    """One accelerator. Peaks are dense (no sparsity), per data type of the multiplication."""

    name: str
    kind: Literal["gpu", "npu", "pim", "cpu"]
    memory_bytes: Sourced[Bytes]
    memory_bytes_per_s: Sourced[BytesPerS]
    peak_flop_per_s: dict[DType, Sourced[FlopPerS]] = Field(min_length=1)
    n_sms: Sourced[int] = Field(description="streaming multiprocessors, or cores that run one tile at a time")
    l2_bytes: Sourced[Bytes] | None = None
    power_w: Sourced[Watts] | None = None
    read_j_per_byte: Sourced[Joules] | None = Field(default=None, description="energy of reading the memory")
    flop_j: Sourced[Joules] | None = Field(default=None, description="energy of multiplying and adding, for each FLOP")
    price_usd: Sourced[Dollars] | None = None
    pim: PimUnits | None = None
    kernels: str = Field(default="datasheet-only", description="name of the card of kernel constants")
    note: str | None = None


ALPHA_BETA_BAND = Band(
    low=0.75,
    high=1.35,
    source="one latency and bandwidth against all-to-all tables of 8 GPUs (aiconfigurator-core 0.12.0, NCCL on A100, "
    "H100, H200, B200 and RTX PRO 6000): 0.75 to 0.86 and 1.2 to 1.44; other links assumed alike",
)


class LinkCard(Spec):
    """One link of one device, one direction."""

    name: str
    kind: Literal["nvlink", "pcie", "infiniband", "unified-bus", "ethernet", "memory"]
    bytes_per_s: Sourced[BytesPerS] = Field(description="per device and direction")
    latency_s: Sourced[Seconds] = Field(description="of one exchange or copy")
    step_latency_s: Sourced[Seconds] | None = Field(default=None, description="of a ring step; default: latency_s")
    message_s: Sourced[Seconds] | None = Field(
        default=None, description="of each message of an all-to-all, beside its bytes; default: none"
    )
    efficiency: Sourced[float] = Field(description="share of bytes_per_s that large messages reach (0-1)")
    band: Band = Field(default=ALPHA_BETA_BAND, description="of times by one latency and bandwidth")
    note: str | None = None

    @property
    def ring_step_latency_s(self) -> float:
        """Time that one step of a ring collective takes beside its bytes [s]."""
        return (self.step_latency_s or self.latency_s).value

    @property
    def message_overhead_s(self) -> float:
        """Time of a message beside its bytes [s]; messages of this x bandwidth reach half the bandwidth."""
        return self.message_s.value if self.message_s else 0.0

    @property
    def effective_bytes_per_s(self) -> float:
        """Bandwidth that large messages reach [bytes/s]."""
        return self.bytes_per_s.value * self.efficiency.value


class HostCard(Spec):
    """One host: all sockets together."""

    name: str
    n_sockets: Sourced[int]
    cores: Sourced[int] = Field(description="physical cores of all sockets")
    dram_channels: Sourced[int] = Field(description="channels of all sockets")
    dram_bytes_per_s: Sourced[BytesPerS] = Field(description="all sockets")
    dram_bytes: Sourced[Bytes] | None = None
    numa_nodes: Sourced[int] | None = Field(default=None, description="of all sockets; default: one a socket")
    remote_bytes_per_s: Sourced[BytesPerS] | None = Field(
        default=None, description="one NUMA node reading the memory of another"
    )
    peak_flop_per_s: dict[DType, Sourced[FlopPerS]] = Field(min_length=1, description="all sockets")
    clock_hz: Sourced[Hertz] | None = None
    power_w: Sourced[Watts] | None = None
    kernels: str = Field(default="cpu-assumed", description="name of the card of CPU constants")
    note: str | None = None

    @property
    def nodes(self) -> int:
        """NUMA nodes of all sockets."""
        return (self.numa_nodes or self.n_sockets).value


READ_BAND = Band(low=0.7, high=1.5, source="a guess: file systems and heat slow drives, and nobody measured")
"""Of times of reads from a drive."""


class SsdCard(Spec):
    """A solid-state drive that a host reads weights from."""

    name: str
    bytes_per_s: Sourced[BytesPerS] = Field(description="sequential reads, nominal")
    efficiency: Sourced[float] = Field(description="share of bytes_per_s that large reads reach (0-1)")
    latency_s: Sourced[Seconds] = Field(description="of one request alone")
    request_bytes: Sourced[Bytes] = Field(description="that a large read is divided into")
    capacity_bytes: Sourced[Bytes]
    note: str | None = None


class NodeCard(Spec):
    """A server or rack unit: devices joined by one fast fabric, with one network port each."""

    name: str
    device: str
    n_devices: Sourced[int]
    intra_link: str = Field(description="link card between devices of the node")
    inter_link: str | None = Field(default=None, description="link card of each device's network port")
    host: str | None = None
    host_link: str | None = Field(default=None, description="link card between each device and the host")
    note: str | None = None


class CpuKernelCard(Spec):
    """Named constants of the laws of a host's cores, of one engine."""

    name: str
    constants: CpuConstants
    note: str | None = None


class CardSet(Spec):
    """A YAML file of hardware cards, a list for each kind; the last three hold what was measured on links."""

    devices: tuple[DeviceCard, ...] = ()
    links: tuple[LinkCard, ...] = ()
    hosts: tuple[HostCard, ...] = ()
    nodes: tuple[NodeCard, ...] = ()
    ssds: tuple[SsdCard, ...] = ()
    kernels: tuple[KernelCard, ...] = ()
    cpu_kernels: tuple[CpuKernelCard, ...] = ()
    collectives: tuple[CollectiveCard, ...] = ()
    exchanges: tuple[ExchangeCard, ...] = ()
    copies: tuple[CopyCard, ...] = ()

    @model_validator(mode="after")
    def _names_once(self) -> CardSet:
        for kind in type(self).model_fields:
            names = [card.name for card in getattr(self, kind)]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind}: named twice: {', '.join(twice)}")
        return self
