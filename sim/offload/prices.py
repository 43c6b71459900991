"""Steps whose experts live in the host's memory: their works, and how long copies, device and host take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels import host as host_laws
from hwmodels.cards import LinkCard
from hwmodels.copies import CopyLaw, block_s, find_copy_law
from hwmodels.host import Host
from hwmodels.library import find_copies, find_cpu_kernels
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from hwmodels.sharing import fair_shares
from hwmodels.widths import Width
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
from sim.offload.misses import MissCosts
from sim.offload.replay import Replayed
from sim.offload.slots import lowered
from sim.offload.wanted import Mask, Wanted
from sim.program import Layer, Step, Stored, Work
from sim.setting import Setting

COPIES = ("load", "ahead")
"""Kinds of works that copy experts to the device."""
COMPUTED = ("resident", "coming", "loaded")
"""Kinds of works of experts on the device."""
HOSTED = ("hosted", "deferred")
"""Kinds of works of experts on the host."""
PIECES = 8
"""Copies of a layer's misses that the device waits for one by one; more experts than that come several at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """What a device's host adds: time of one expert's copy, the host's cores for its experts, and the way there.

    copy_s, expert_bytes   of an expert, alike for all or float64[layer, rank, place]; low_copy_s, low_bytes: in the
                           lower precision of `grades`, 0 without.
    dram_bytes_per_s  share of the host's memory bandwidth that each device's experts have, all devices at once.
    """

    copy_s: Seconds | float
    cores: Host
    dram_bytes_per_s: float
    link_bytes_per_s: float
    link_latency_s: float
    expert_bytes: Seconds | float
    low_copy_s: float = 0.0
    low_bytes: float = 0.0


def tiers_of(setting: Setting, spec: OffloadSpec, wanted: Wanted | None = None) -> Tiers:
    """The host of every device of the setting; devices of a node share its cores and its memory bandwidth evenly.

    wanted  which expert is at which place, where they are stored in several widths.

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
    expert_bytes, mean_bytes = _sizes(setting, wanted)
    low_bytes = 0.0 if spec.grades is None else lowered(setting.model, spec.grades).expert_bytes / setting.layout.tp
    low_copy_s = float(_copy_s(low_bytes, link)) if low_bytes else 0.0
    users = (mean_bytes / float(_copy_s(mean_bytes, link)), host.dram_bytes_per_s)
    copies, experts = fair_shares(users, dram_bytes_per_s) if both else np.minimum(users, dram_bytes_per_s)
    return Tiers(
        copy_s=np.maximum(_copy_s(expert_bytes, link), expert_bytes / float(copies))[()],
        low_copy_s=max(low_copy_s, low_bytes / float(copies)),
        expert_bytes=expert_bytes,
        low_bytes=low_bytes,
        cores=host,
        dram_bytes_per_s=float(experts),
        link_bytes_per_s=link.effective_bytes_per_s,
        link_latency_s=link.latency_s.value,
    )


def _sizes(setting: Setting, wanted: Wanted | None) -> tuple[Seconds | float, float]:
    """Bytes that a device holds of an expert, of each place where they differ, and their mean."""
    sizes, tp = setting.expert_bytes / setting.layout.tp, setting.layout.tp
    if setting.widths is None or wanted is None:
        return setting.model.expert_bytes / tp, float(sizes.mean())
    return sizes[np.arange(len(wanted.expert))[:, None, None], np.maximum(wanted.expert, 0)], float(sizes.mean())


def _copy_s(expert_bytes: ArrayLike, link: LinkCard) -> Seconds:
    """Time of one expert's copy over the link, as fast as the host's memory may be."""
    law = copy_law(link)
    if law is not None:
        return block_s(expert_bytes, law, link.bytes_per_s.value)
    return np.asarray(link.latency_s.value + np.asarray(expert_bytes) / link.effective_bytes_per_s)


def copy_law(link: LinkCard) -> CopyLaw | None:
    """The law of copies by the copy engine from pinned memory over this kind of link; None where nobody measured."""
    copies = find_copies(link.name)
    return None if copies is None else find_copy_law(copies, "to-device", "copy-engine")


def host_bands(setting: Setting) -> dict[str, tuple[float, float]]:
    """Ends of the 80 % band of measured over predicted time of the works of copies and of the host, by kind."""
    cluster = setting.cluster
    if cluster.host is None or cluster.host_link is None:
        return {}
    law = copy_law(cluster.host_link)
    copies = (cluster.host_link.band.low, cluster.host_link.band.high) if law is None else law.low_high
    cores = find_cpu_kernels(cluster.host.kernels).constants.low_high
    return dict.fromkeys((*COPIES, "page"), copies) | dict.fromkeys(HOSTED, cores)


def miss_costs(setting: Setting, wanted: Wanted, tiers: Tiers) -> MissCosts:
    """Times of every single expert, by its tokens."""
    counts = np.arange(wanted.tokens.max() + 1)
    rows = (len(wanted.tokens), -1, wanted.tokens.shape[-1])

    def device_s(width: Width | None) -> Seconds:
        shape, factor = expert_shape(setting.model, setting.layout.tp), 1.0
        shape, factor = (shape, factor) if width is None else width.multiplied(shape)
        return np.where(counts > 0, factor * grouped_gemm_moe_s(counts[:, None], shape, setting.cluster.device), 0.0)

    return MissCosts(
        host_s=_by_width(setting, wanted, wanted.tokens, partial(_host_expert_s, setting, tiers, counts)).reshape(rows),
        device_s=_by_width(setting, wanted, wanted.tokens, device_s).reshape(rows),
        copy_s=np.reshape(tiers.copy_s, rows[1:]) if np.ndim(tiers.copy_s) else tiers.copy_s,
        call_s=tiers.cores.constants.call_s + 2 * tiers.link_latency_s,
    )


def _host_expert_s(setting: Setting, tiers: Tiers, counts: NDArray[np.int64], width: Width | None) -> Seconds:
    """Time of one expert on the host, by its tokens."""
    shape = expert_shape(setting.model, setting.layout.tp)
    stored = shape if width is None else width.stored(shape)
    return host_laws.expert_s(counts, stored, tiers.cores, tiers.dram_bytes_per_s)


def _by_width(
    setting: Setting, wanted: Wanted, tokens: NDArray[np.int64], table_of: Callable[[Width | None], Seconds]
) -> Seconds:
    """Values of every expert by its tokens int64[step, layer, rank, place], of tables by its width."""
    if setting.widths is None:
        return table_of(None)[tokens]
    found: Seconds = np.zeros(tokens.shape)
    layer = np.arange(len(wanted.expert))[:, None, None]
    for width, whose in setting.widths.used():
        found = np.where(whose[layer, np.maximum(wanted.expert, 0)], table_of(width)[tokens], found)
    return found


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
    return Stored(
        resident=Work("resident", number),
        ahead=Work("ahead", number) if prefetched else None,
        coming=Work("coming", number) if prefetched else None,
        loads=tuple((Work("load", number, piece), Work("loaded", number, piece)) for piece in pieces),
        hosted=Work("hosted", number) if hosted and spec.defer < 1 else None,
        deferred=Work("deferred", number) if hosted and spec.defer > 0 else None,
        lead=spec.prefetch.lead if spec.prefetch is not None else 1,
    )


def summed(mask: Mask, each: Seconds | float) -> Seconds:
    """Sum over the places of a mask of what each is worth, alike for all or float64[layer, rank, place]."""
    if np.ndim(each) == 0:
        return np.asarray(mask.sum(axis=-1) * each)
    return np.asarray((mask * each).sum(axis=-1))


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

    def n_pieces(self, row: int) -> int:
        """Pieces that the copies of missed experts of a layer come in."""
        return min(PIECES, int(self._copied(row).max()))

    def prices(self) -> dict[str, list[list[Duration]]]:
        """Times of all works: kind -> [MoE layer][piece] -> float64[step, device]."""
        served = self.served
        hosted_s = self._on_host()
        parts_s = {
            "resident": self._on_device(served.resident) + self._low_on_device("resident"),
            "coming": self._on_device(served.coming),
            "ahead": summed(served.fetched_ahead, self.tiers.copy_s),
            "hosted": hosted_s * (1 - self.spec.defer),
            "deferred": hosted_s * self.spec.defer,
        }
        found = {kind: [[row] for row in self._rows(times_s)] for kind, times_s in parts_s.items()}
        return found | self._loads()

    def _loads(self) -> dict[str, list[list[Duration]]]:
        """Copies of missed experts and their work, piece by piece: pieces differ by one expert at most.

        In two precisions every piece is the same mixture of both.
        """
        counts, worked_s = (
            self._copied(slice(None)),
            self._on_device(self.served.loaded) + self._low_on_device("loaded"),
        )
        copies_s = summed(self.served.loaded, self.tiers.copy_s)
        if self.low is not None:
            copies_s = copies_s + self.low.loaded.sum(axis=-1) * self.tiers.low_copy_s
        loads: list[list[Duration]] = []
        loaded: list[list[Duration]] = []
        for row in range(counts.shape[1]):
            n_pieces = self.n_pieces(row)
            parts = [(counts[:, row] + n_pieces - 1 - piece) // n_pieces for piece in range(n_pieces)]
            shares = [part / np.maximum(counts[:, row], 1) for part in parts]
            loads.append([self._by_device(share * copies_s[:, row]) for share in shares])
            loaded.append([self._by_device(share * worked_s[:, row]) for share in shares])
        return {"load": loads, "loaded": loaded}

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
        shape = None if model is None else expert_shape(model, self.setting.layout.tp)
        only = np.moveaxis(mask, 1, 0)
        return np.moveaxis(expert_times_s(machine, self.placement, self.reduction, shape, only=only), 1, 0)

    def _on_host(self) -> Seconds:
        """Time of the experts left to the host, with the way of their tokens there and back: [step, layer, rank]."""
        setting, tiers = self.setting, self.tiers
        if not self.served.hosted.any():
            return np.zeros(self.wanted.tokens.shape[:-1])
        tokens = np.where(self.served.hosted, self.wanted.tokens, 0)
        counts = np.arange(tokens.max() + 1)
        each_s = _by_width(setting, self.wanted, tokens, partial(_host_expert_s, setting, tiers, counts))
        work_s = each_s.sum(axis=-1)
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
