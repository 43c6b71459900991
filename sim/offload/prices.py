"""Steps whose experts live in the host's memory: their works, and how long copies, device and host take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hwmodels import host as host_laws
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from hwmodels.widths import Width
from placement.moe_time import expert_times_s
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.models import ModelCard
from scenarios.offload_specs import OffloadSpec
from scenarios.schedule_specs import ExchangeSpec
from sim.durations import Duration, Seconds
from sim.kernel_pricing import machine_of
from sim.offload.grades import Low
from sim.offload.misses import MissCosts
from sim.offload.replay import Replayed
from sim.offload.slots import lowered
from sim.offload.tiers import Tiers
from sim.offload.wanted import Mask, Scores, Wanted
from sim.program import Layer, Step, Stored, Work
from sim.setting import Setting

PIECES = 8
"""Copies of a layer's misses that the device waits for one by one; more experts than that come several at once."""


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
            "ahead": summed(served.coming if lets_pass else served.fetched_ahead, copy_s),
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
        return summed(before, self.tiers.copy_s), summed(wrong & ~before, self.tiers.copy_s)

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
