"""Steps whose experts live in the host's memory: their works, and how long copies, device and host take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwmodels import host as host_laws
from hwmodels.cards import READ_BAND, LinkCard, SsdCard
from hwmodels.copies import CopyLaw, block_s, find_copy_law
from hwmodels.host import Host
from hwmodels.library import find_copies, find_cpu_kernels
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from hwmodels.sharing import fair_shares
from hwmodels.ssd import read_bytes_per_s, read_s
from placement.moe_time import expert_times_s
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.models import ModelCard
from scenarios.offload_specs import OffloadSpec
from scenarios.schedule_specs import ExchangeSpec
from sim.durations import Duration, Seconds
from sim.kernel_pricing import machine_of
from sim.offload.grades import Low
from sim.offload.host_cache import drive_of
from sim.offload.misses import MissCosts
from sim.offload.replay import Replayed
from sim.offload.slots import lowered
from sim.offload.wanted import Mask, Scores, Wanted
from sim.program import Layer, Step, Stored, Work
from sim.setting import Setting

COPIES = ("load", "ahead", "astray")
"""Kinds of works that copy experts to the device."""
READS = ("read", "read hosted", "read ahead")
"""Kinds of works that read experts from the host's drive."""
COMPUTED = ("resident", "coming", "loaded")
"""Kinds of works of experts on the device."""
HOSTED = ("hosted", "deferred")
"""Kinds of works of experts on the host."""
PIECES = 8
"""Copies of a layer's misses that the device waits for one by one; more experts than that come several at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """What a device's host adds: time of one expert's copy, the host's cores for its experts, and the way there.

    packet_s  what one expert's copy takes of a packet, the time that it cannot be interrupted for.
    low_copy_s, low_bytes  of an expert in the lower precision of `grades`, 0 without; expert_bytes: of any other.
    drive, drive_share  the host's drive, if it has experts, and what each device has of its rate; queue_depth of reads.
    dram_bytes_per_s  share of the host's memory bandwidth that each device's experts have, all devices at once.
    """

    copy_s: float
    packet_s: float
    cores: Host
    dram_bytes_per_s: float
    link_bytes_per_s: float
    link_latency_s: float
    expert_bytes: float
    low_copy_s: float = 0.0
    low_bytes: float = 0.0
    drive: SsdCard | None = None
    drive_share: float = 1.0
    queue_depth: int = 1

    def read_s(self, n_experts: NDArray[np.integer]) -> Seconds:
        """Time to read so many experts from the drive one after another, float64[...] [s]."""
        if self.drive is None:
            return np.zeros(n_experts.shape)
        return read_s(n_experts * self.expert_bytes, self.drive, self.queue_depth, self.drive_share)


def tiers_of(setting: Setting, spec: OffloadSpec) -> Tiers:
    """The host of every device of the setting; devices of a node share its cores and its memory bandwidth evenly.

    Where a plan both copies and leaves work to the cores, they share the bandwidth as if they always met: max-min fair.
    Raises ScenarioError where the node has no host, or fewer cores than are asked for.
    """
    cluster = setting.cluster
    if cluster.host is None or cluster.host_link is None:
        raise ScenarioError(
            f"memory.offload: {cluster.name} has no host whose memory could hold experts; use a node card with a host"
        )
    link, n_devices = cluster.host_link, cluster.devices_per_node
    cores = spec.cores or cluster.host.cores.value
    threads = cores // n_devices
    if not 1 <= threads <= cluster.host.cores.value // n_devices:
        raise ScenarioError(
            f"memory.offload: {cores} cores for {n_devices} devices of {cluster.host.name}, which has "
            f"{cluster.host.cores.value}; give {n_devices} to {cluster.host.cores.value}"
        )
    host = Host(card=cluster.host, constants=find_cpu_kernels(cluster.host.kernels).constants, n_threads=threads)
    dram_bytes_per_s = cluster.host.dram_bytes_per_s.value / n_devices
    both = spec.miss in ("cheaper", "balanced") or (spec.miss == "host" and spec.prefetch is not None)
    expert_bytes = setting.model.expert_bytes / setting.layout.tp
    low_bytes = 0.0 if spec.grades is None else lowered(setting.model, spec.grades).expert_bytes / setting.layout.tp
    n_packets = 1 if spec.packet is None else math.ceil(expert_bytes / spec.packet)
    copy_s, low_copy_s = _copy_s(expert_bytes, link, n_packets), _copy_s(low_bytes, link) if low_bytes else 0.0
    drive = drive_of(setting, spec)
    reads = 0.0 if drive is None else read_bytes_per_s(drive, spec.ssd_queue) / n_devices
    users = (expert_bytes / copy_s, host.dram_bytes_per_s)
    copies, experts = _dram_shares(users, reads, dram_bytes_per_s, together=both)
    copy_s = max(copy_s, expert_bytes / copies)
    return Tiers(
        copy_s=copy_s,
        packet_s=copy_s / n_packets,
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


def _dram_shares(
    users: tuple[float, float], reads: float, dram_bytes_per_s: float, *, together: bool
) -> tuple[float, float]:
    """What copies and the host's experts have of its memory's bandwidth, beside `reads` of a drive [bytes/s]."""
    if together:
        copies, experts, _ = fair_shares((*users, reads), dram_bytes_per_s)
    else:
        copies, experts = fair_shares([(user, reads) for user in users], np.full(2, dram_bytes_per_s))[:, 0]
    return float(copies), float(experts)


def _copy_s(expert_bytes: float, link: LinkCard, n_packets: int = 1) -> float:
    """Time of one expert's copy over the link in packets of equal size, as fast as the host's memory may be."""
    law = copy_law(link)
    if law is not None:
        return n_packets * float(block_s(expert_bytes / n_packets, law, link.bytes_per_s.value))
    return n_packets * link.latency_s.value + expert_bytes / link.effective_bytes_per_s


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


def miss_costs(setting: Setting, wanted: Wanted, tiers: Tiers) -> MissCosts:
    """Times of every single expert, by its tokens."""
    shape = expert_shape(setting.model, setting.layout.tp)
    counts = np.arange(wanted.tokens.max() + 1)
    device_s = grouped_gemm_moe_s(counts[:, None], shape, setting.cluster.device)
    host_s = host_laws.expert_s(counts, shape, tiers.cores, tiers.dram_bytes_per_s)
    by_row = wanted.tokens.reshape(len(wanted.tokens), -1, wanted.tokens.shape[-1])
    return MissCosts(
        host_s=host_s[by_row],
        device_s=np.where(counts > 0, device_s, 0.0)[by_row],
        copy_s=tiers.copy_s,
        call_s=tiers.cores.constants.call_s + 2 * tiers.link_latency_s,
    )


def caching(step: Step, pricing: OffloadPricing) -> Step:
    """The step with the works that serve its experts."""
    row = 0
    layers = []
    for layer in step.layers:
        if layer.gate is not None:
            layer = replace(layer, stored=_stored(layer, pricing, row))
            row += 1
        layers.append(layer)
    return replace(step, layers=tuple(layers))


def _stored(layer: Layer, pricing: OffloadPricing, row: int) -> Stored:
    number, spec = layer.number, pricing.spec
    prefetched, hosted = spec.prefetch is not None, pricing.served.hosted[:, row].any()
    pieces = range(pricing.n_pieces(row))
    lets_pass = spec.priority == "demand-first"
    return Stored(
        resident=Work("resident", number),
        ahead=Work("ahead", number) if prefetched else None,
        coming=Work("coming", number) if prefetched else None,
        loads=tuple((Work("load", number, piece), Work("loaded", number, piece)) for piece in pieces),
        hosted=Work("hosted", number) if hosted and spec.defer < 1 else None,
        deferred=Work("deferred", number) if hosted and spec.defer > 0 else None,
        astray=(Work("astray", number, 0), Work("astray", number, 1)) if lets_pass else (),
        rest=Work("rest", number) if lets_pass else None,
        drop=(Work("drop", number, 0), Work("drop", number, 1)) if spec.prefetch and spec.prefetch.cancel else (),
        reads=tuple(Work("read", number, piece) for piece in pieces) if spec.ssd else (),
        read_hosted=Work("read hosted", number) if spec.ssd and hosted else None,
        read_ahead=Work("read ahead", number) if spec.ssd and prefetched else None,
        lead=spec.prefetch.lead if spec.prefetch is not None else 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadPricing:
    """What the works of a setting's offloaded experts are priced by."""

    setting: Setting
    placement: Placement
    reduction: Reduction
    exchange: ExchangeSpec
    wanted: Wanted
    served: Replayed
    tiers: Tiers
    spec: OffloadSpec
    low: Low | None = None
    guess: Scores | None = None
    on_drive: Mask | None = None

    def n_pieces(self, row: int) -> int:
        """Pieces that the copies of missed experts of a layer come in."""
        return min(PIECES, int(self._copied(row).max()))

    def prices(self) -> dict[str, list[list[Duration]]]:
        """Times of all works: kind -> [MoE layer][piece] -> float64[step, device]."""
        served, copy_s = self.served, self.tiers.copy_s
        hosted_s, lets_pass = self._on_host(), self.spec.priority == "demand-first"
        parts_s = {
            "resident": self._on_device(served.resident) + self._low_on_device("resident"),
            "coming": self._on_device(served.coming),
            "ahead": (served.coming if lets_pass else served.fetched_ahead).sum(axis=-1) * copy_s,
            "rest": np.zeros(served.coming.shape[:-1]),
            "hosted": hosted_s * (1 - self.spec.defer),
            "deferred": hosted_s * self.spec.defer,
        }
        found = {kind: [[row] for row in self._rows(times_s)] for kind, times_s in parts_s.items()}
        before_s, beyond_s = (self._rows(times_s) for times_s in self._astray())
        astray = [list(both) for both in zip(before_s, beyond_s, strict=True)]
        found |= self._reads()
        return found | self._loads() | {"astray": astray, "drop": [row * 2 for row in found["rest"]]}

    def _reads(self) -> dict[str, list[list[Duration]]]:
        """Reads from the drive: with each piece of the misses, of which those in the host's memory come first."""
        if self.on_drive is None:
            return {}
        served, tiers, on_drive = self.served, self.tiers, self.on_drive
        pieces: list[list[Duration]] = []
        for row in range(served.loaded.shape[1]):
            counts = self._piece_counts(row)
            before = np.cumsum(counts, axis=0) - counts
            here = (served.loaded & ~on_drive)[:, row].sum(axis=-1)
            read = counts - np.clip(here - before, 0, counts)
            pieces.append([self._by_device(tiers.read_s(part)) for part in read])
        others = {"read hosted": served.hosted & on_drive, "read ahead": served.fetched_ahead & on_drive}
        whole = {kind: self._rows(tiers.read_s(mask.sum(axis=-1))) for kind, mask in others.items()}
        return {"read": pieces} | {kind: [[row] for row in rows] for kind, rows in whole.items()}

    def _astray(self) -> tuple[Seconds, Seconds]:
        """Copies ahead that nobody uses, float64[step, layer, rank] each: of what stands before the last that is used
        in the order of the guess, and of what stands after it."""
        served, guess = self.served, self.guess
        wrong = served.fetched_ahead & ~served.coming
        if guess is None:
            return (np.zeros(wrong.shape[:-1]),) * 2
        last = np.where(served.coming, guess, np.inf).min(axis=-1, keepdims=True)
        before = wrong & (guess > last)
        return before.sum(axis=-1) * self.tiers.copy_s, (wrong & ~before).sum(axis=-1) * self.tiers.copy_s

    def _loads(self) -> dict[str, list[list[Duration]]]:
        """Copies of missed experts and their work, piece by piece: pieces differ by one expert at most.

        In two precisions every piece is the same mixture of both.
        """
        counts, worked_s = (
            self._copied(slice(None)),
            self._on_device(self.served.loaded) + self._low_on_device("loaded"),
        )
        copies_s = self.served.loaded.sum(axis=-1) * self.tiers.copy_s
        if self.low is not None:
            copies_s = copies_s + self.low.loaded.sum(axis=-1) * self.tiers.low_copy_s
        loads: list[list[Duration]] = []
        loaded: list[list[Duration]] = []
        for row in range(counts.shape[1]):
            shares = [part / np.maximum(counts[:, row], 1) for part in self._piece_counts(row)]
            loads.append([self._by_device(share * copies_s[:, row]) for share in shares])
            loaded.append([self._by_device(share * worked_s[:, row]) for share in shares])
        return {"load": loads, "loaded": loaded}

    def _piece_counts(self, row: int) -> NDArray[np.int64]:
        """Experts of each piece that the copies of a layer's misses come in, int64[piece, step, rank]."""
        n_pieces, copied = self.n_pieces(row), self._copied(row)
        return (copied + n_pieces - 1 - np.arange(n_pieces)[:, None, None]) // max(n_pieces, 1)

    def _copied(self, row: int | slice) -> NDArray[np.int64]:
        """Missed experts of a layer, or all, that are copied, in whatever precision: int64[step, ..., rank]."""
        loaded: NDArray[np.int64] = self.served.loaded[:, row].sum(axis=-1)
        return loaded if self.low is None else loaded + self.low.loaded[:, row].sum(axis=-1)

    def _low_on_device(self, name: str) -> Seconds:
        if self.low is None or self.spec.grades is None:
            return np.zeros(self.wanted.tokens.shape[:-1])
        return self._on_device(getattr(self.low, name), lowered(self.setting.model, self.spec.grades))

    def _on_device(self, mask: Mask, model: ModelCard | None = None) -> Seconds:
        """Time of some of the experts on the device, float64[step, layer, rank]: a call of its own where any is."""
        if not mask.any():
            return np.zeros(mask.shape[:-1])
        machine = machine_of(self.setting, self.exchange)
        shape = expert_shape(model or self.setting.model, self.setting.layout.tp)
        only = np.moveaxis(mask, 1, 0)
        return np.moveaxis(expert_times_s(machine, self.placement, self.reduction, shape, only=only), 1, 0)

    def _on_host(self) -> Seconds:
        """Time of the experts left to the host, with the way of their tokens there and back: [step, layer, rank]."""
        setting, tiers = self.setting, self.tiers
        if not self.served.hosted.any():
            return np.zeros(self.wanted.tokens.shape[:-1])
        tokens = np.where(self.served.hosted, self.wanted.tokens, 0)
        shape = expert_shape(setting.model, setting.layout.tp)
        each_s = host_laws.expert_s(np.arange(tokens.max() + 1), shape, tiers.cores, tiers.dram_bytes_per_s)
        work_s = each_s[tokens].sum(axis=-1)
        machine = machine_of(setting, self.exchange)
        choices, summed = tokens.sum(axis=-1), np.moveaxis(self.reduction.summed_tokens, 1, 0)
        rows = np.where(summed > 0, np.minimum(choices, summed), choices)
        row_bytes = machine.copy_bytes("dispatch") + machine.copy_bytes("combine")
        way_s = 2 * tiers.link_latency_s + rows * row_bytes / tiers.link_bytes_per_s
        return np.where(rows > 0, tiers.cores.constants.call_s + work_s + way_s, 0.0)

    def _rows(self, times_s: Seconds) -> list[Duration]:
        return [self._by_device(times_s[:, row]) for row in range(times_s.shape[1])]

    def _by_device(self, times_s: NDArray[np.float64]) -> Seconds:
        """[step, rank] as [step, device]: the devices that share an expert all hold their part of it."""
        return np.repeat(times_s, self.setting.layout.tp, axis=-1)
