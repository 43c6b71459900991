"""The tiers below a device's memory: how long copies of experts take, what the host's cores have, and its drive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.cards import READ_BAND, LinkCard, SsdCard
from hwmodels.copies import CopyLaw, block_s, find_copy_law
from hwmodels.host import Host
from hwmodels.library import find_copies, find_cpu_kernels
from hwmodels.sharing import fair_shares
from hwmodels.ssd import read_bytes_per_s, read_s
from scenarios.errors import ScenarioError
from scenarios.offload_specs import OffloadSpec
from sim.durations import Seconds
from sim.offload.host_cache import drive_of
from sim.offload.slots import lowered
from sim.offload.wanted import Wanted
from sim.setting import Setting

COPIES = ("load", "ahead", "astray")
"""Kinds of works that copy experts to the device."""
READS = ("read", "read hosted", "read ahead")
"""Kinds of works that read experts from the host's drive."""
COMPUTED = ("resident", "coming", "loaded")
"""Kinds of works of experts on the device."""
HOSTED = ("hosted", "deferred")
"""Kinds of works of experts on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """What a device's host adds: time of one expert's copy, the host's cores for its experts, and the way there.

    copy_s, expert_bytes  of an expert, alike for all or float64[layer, rank, place].
    packet_s  what one expert's copy takes of a packet, the time that it cannot be interrupted for.
    low_copy_s, low_bytes  of an expert in the lower precision of `grades`, 0 without.
    drive, drive_share  the host's drive, if it has experts, and what each device has of its rate; queue_depth of reads.
    dram_bytes_per_s  share of the host's memory bandwidth that each device's experts have, all devices at once.
    """

    copy_s: Seconds | float
    packet_s: float
    cores: Host
    dram_bytes_per_s: float
    link_bytes_per_s: float
    link_latency_s: float
    expert_bytes: Seconds | float
    low_copy_s: float = 0.0
    low_bytes: float = 0.0
    drive: SsdCard | None = None
    drive_share: float = 1.0
    queue_depth: int = 1

    def read_s(self, n_experts: NDArray[np.integer]) -> Seconds:
        """Time to read so many experts from the drive one after another, float64[...] [s]."""
        if self.drive is None:
            return np.zeros(n_experts.shape)
        return read_s(n_experts * float(np.mean(self.expert_bytes)), self.drive, self.queue_depth, self.drive_share)


def tiers_of(setting: Setting, spec: OffloadSpec, wanted: Wanted | None = None) -> Tiers:
    """The host of every device of the setting; devices of a node share its cores and its memory bandwidth evenly.

    wanted  which expert is at which place, where they are stored in several widths.

    Where a plan both copies and leaves work to the cores, they share the bandwidth as if they always met: max-min fair.
    Raises ScenarioError where the node has no host, or fewer cores than are asked for.
    """
    cluster, host = setting.cluster, _host_of(setting, spec)
    if cluster.host_link is None:
        raise ScenarioError(f"memory.offload: {cluster.name} has no link to its host; use another node card")
    link, n_devices = cluster.host_link, cluster.devices_per_node
    dram_bytes_per_s = host.card.dram_bytes_per_s.value / n_devices
    both = spec.miss in ("cheaper", "balanced") or (spec.miss == "host" and spec.prefetch is not None)
    expert_bytes, mean_bytes = _sizes(setting, wanted)
    low_bytes = 0.0 if spec.grades is None else lowered(setting.model, spec.grades).expert_bytes / setting.layout.tp
    n_packets = 1 if spec.packet is None else math.ceil(mean_bytes / spec.packet)
    low_copy_s = float(_copy_s(low_bytes, link)) if low_bytes else 0.0
    drive = drive_of(setting, spec)
    reads = 0.0 if drive is None else read_bytes_per_s(drive, spec.ssd_queue) / n_devices
    users = (mean_bytes / float(_copy_s(mean_bytes, link, n_packets)), host.dram_bytes_per_s)
    copies, experts = _dram_shares(users, reads, dram_bytes_per_s, together=both)
    copy_s: Seconds | float = np.maximum(_copy_s(expert_bytes, link, n_packets), expert_bytes / copies)[()]
    return Tiers(
        copy_s=copy_s,
        packet_s=float(np.mean(copy_s)) / n_packets,
        low_copy_s=max(low_copy_s, low_bytes / copies),
        expert_bytes=expert_bytes,
        low_bytes=low_bytes,
        cores=host,
        dram_bytes_per_s=experts,
        link_bytes_per_s=link.effective_bytes_per_s,
        link_latency_s=link.latency_s.value,
        drive=drive,
        drive_share=1 / n_devices,
        queue_depth=spec.ssd_queue,
    )


def _host_of(setting: Setting, spec: OffloadSpec) -> Host:
    """The part of the host that each device has for its experts."""
    cluster = setting.cluster
    if cluster.host is None or cluster.host_link is None:
        raise ScenarioError(
            f"memory.offload: {cluster.name} has no host whose memory could hold experts; use a node card with a host"
        )
    cores, n_devices = spec.cores or cluster.host.cores.value, cluster.devices_per_node
    threads = cores // n_devices
    if not 1 <= threads <= cluster.host.cores.value // n_devices:
        raise ScenarioError(
            f"memory.offload: {cores} cores for {n_devices} devices of {cluster.host.name}, which has "
            f"{cluster.host.cores.value}; give {n_devices} to {cluster.host.cores.value}"
        )
    return Host(card=cluster.host, constants=find_cpu_kernels(cluster.host.kernels).constants, n_threads=threads)


def _dram_shares(
    users: tuple[float, float], reads: float, dram_bytes_per_s: float, *, together: bool
) -> tuple[float, float]:
    """What copies and the host's experts have of its memory's bandwidth, beside `reads` of a drive [bytes/s]."""
    if together:
        copies, experts, _ = fair_shares((*users, reads), dram_bytes_per_s)
    else:
        copies, experts = fair_shares([(user, reads) for user in users], np.full(2, dram_bytes_per_s))[:, 0]
    return float(copies), float(experts)


def _sizes(setting: Setting, wanted: Wanted | None) -> tuple[Seconds | float, float]:
    """Bytes that a device holds of an expert, of each place where they differ, and their mean."""
    sizes, tp = setting.expert_bytes / setting.layout.tp, setting.layout.tp
    if setting.widths is None or wanted is None:
        return setting.model.expert_bytes / tp, float(sizes.mean())
    return sizes[np.arange(len(wanted.expert))[:, None, None], np.maximum(wanted.expert, 0)], float(sizes.mean())


def _copy_s(expert_bytes: ArrayLike, link: LinkCard, n_packets: int = 1) -> Seconds:
    """Time of one expert's copy over the link in packets of equal size, as fast as the host's memory may be."""
    law = copy_law(link)
    if law is not None:
        return n_packets * block_s(np.asarray(expert_bytes) / n_packets, law, link.bytes_per_s.value)
    return np.asarray(n_packets * link.latency_s.value + np.asarray(expert_bytes) / link.effective_bytes_per_s)


def copy_law(link: LinkCard) -> CopyLaw | None:
    """The law of copies by the copy engine from pinned memory over this kind of link; None where nobody measured."""
    copies = find_copies(link.name)
    return None if copies is None else find_copy_law(copies, "to-device", "copy-engine")


def host_bands(setting: Setting) -> dict[str, tuple[float, float]]:
    """Ends of the 80 % band of measured over predicted time of the works of copies, reads and the host, by kind."""
    cluster = setting.cluster
    if cluster.host is None or cluster.host_link is None:
        return {}
    law = copy_law(cluster.host_link)
    copies = (cluster.host_link.band.low, cluster.host_link.band.high) if law is None else law.low_high
    cores = find_cpu_kernels(cluster.host.kernels).constants.low_high
    reads = READ_BAND.low, READ_BAND.high
    return dict.fromkeys((*COPIES, "page"), copies) | dict.fromkeys(HOSTED, cores) | dict.fromkeys(READS, reads)
