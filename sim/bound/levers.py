"""Numbers of the hardware, and what more of each brings: the bound solved again with a little more of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hwmodels.cards import LinkCard
from hwmodels.cluster import Cluster
from hwmodels.devices import Device
from hwmodels.pim import pim_units
from scenarios.offload_specs import OffloadSpec
from sim.bound.resources import Resource
from sim.session import Plan
from sim.setting import Setting

Rows = Callable[[Setting], tuple[Resource, ...]]
"""The rows of a plan, as a function of the setting's hardware."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """One number of the hardware, and the bound with a tenth more of it on every device.

    now           the number, in `unit`, of one device.
    per_unit      tokens/s of one more unit on every device, from a step of 1 %.
    """

    name: str
    unit: str
    now: float
    per_unit: float
    tenth_more_tokens_per_s: float


def levers(setting: Setting, rows: Rows, base: float, plan: Plan) -> Iterator[Lever]:
    """Levers of a setting whose bound is `base`; those of hosts and PIM units where the plan uses them."""

    def relaxed(change: Callable[[Cluster, float], Cluster], factor: float) -> float:
        cluster = change(setting.cluster, factor)
        return least(rows(replace(setting, cluster=cluster)))

    for name, unit, now, change in _numbers(setting, plan):
        yield Lever(
            name=name,
            unit=unit,
            now=now,
            per_unit=(relaxed(change, 1.01) - base) / (0.01 * now),
            tenth_more_tokens_per_s=relaxed(change, 1.1) - base,
        )


def least(rows: tuple[Resource, ...]) -> float:
    """Throughput that the rows allow together."""
    return min(row.tokens_per_s for row in rows)


def slots_lever(
    setting: Setting, rows: Callable[[OffloadSpec], Rows], spec: OffloadSpec, slots: int, base: float
) -> Lever:
    """What memory for one more expert of every layer brings, in GiB; `slots` of a layer now."""

    def more(count: int) -> float:
        grown = spec.model_copy(update={"slots": slots + count, "share": None})
        return least(rows(grown)(setting)) - base

    slot_gib = len(setting.model.moe_layers) * setting.model.expert_bytes / setting.layout.tp / 2**30
    tenth = max(round(0.1 * slots), 1)
    return Lever(
        name="memory for experts",
        unit="GiB",
        now=slots * slot_gib,
        per_unit=more(1) / slot_gib,
        tenth_more_tokens_per_s=more(tenth) * 0.1 * slots / tenth,
    )


def _numbers(setting: Setting, plan: Plan) -> Iterator[tuple[str, str, float, Callable[[Cluster, float], Cluster]]]:
    """(name, unit, value of one device, change of the cluster by a factor)."""
    model, cluster = setting.model, setting.cluster
    main = model.expert_dtype or model.weight_dtype
    yield f"{main} peak", "TFLOP/s", cluster.device.peak_flop_per_s(main) / 1e12, _with_peak
    yield "memory bandwidth", "GB/s", cluster.device.memory_bytes_per_s / 1e9, _with_memory
    if plan.schedule.pim != "none":
        yield from _unit_numbers(cluster.device)
    yield f"{cluster.intra.name} bandwidth", "GB/s", cluster.intra.bytes_per_s.value / 1e9, _with_intra
    if cluster.inter is not None and cluster.n_nodes > 1:
        yield f"{cluster.inter.name} bandwidth", "GB/s", cluster.inter.bytes_per_s.value / 1e9, _with_inter
    streams = plan.memory.offload is not None or plan.memory.stream is not None
    if streams and cluster.host is not None and cluster.host_link is not None:
        yield (
            f"{cluster.host_link.name} to the host",
            "GB/s",
            cluster.host_link.bytes_per_s.value / 1e9,
            _with_host_link,
        )
        yield "host memory, of a node", "GB/s", cluster.host.dram_bytes_per_s.value / 1e9, _with_host_memory
        yield "host fp32 peak, of a node", "TFLOP/s", cluster.host.peak_flop_per_s["fp32"].value / 1e12, _with_host_peak


def _unit_numbers(device: Device) -> Iterator[tuple[str, str, float, Callable[[Cluster, float], Cluster]]]:
    units = pim_units(device.card)
    yield "PIM bandwidth", "GB/s", units.memory_bytes_per_s.value / 1e9, _with_units("memory_bytes_per_s")
    yield "PIM peak", "TFLOP/s", units.peak_flop_per_s.value / 1e12, _with_units("peak_flop_per_s")


def _with_units(field: str) -> Callable[[Cluster, float], Cluster]:
    def change(cluster: Cluster, factor: float) -> Cluster:
        card = cluster.device.card
        units = pim_units(card)
        number = getattr(units, field)
        faster = units.model_copy(update={field: number.model_copy(update={"value": number.value * factor})})
        return replace(cluster, device=replace(cluster.device, card=card.model_copy(update={"pim": faster})))

    return change


def _with_peak(cluster: Cluster, factor: float) -> Cluster:
    card = cluster.device.card
    peaks = {
        dtype: peak.model_copy(update={"value": peak.value * factor}) for dtype, peak in card.peak_flop_per_s.items()
    }
    card = card.model_copy(update={"peak_flop_per_s": peaks})
    return replace(cluster, device=replace(cluster.device, card=card))


def _with_memory(cluster: Cluster, factor: float) -> Cluster:
    card = cluster.device.card
    rate = card.memory_bytes_per_s
    card = card.model_copy(update={"memory_bytes_per_s": rate.model_copy(update={"value": rate.value * factor})})
    return replace(cluster, device=replace(cluster.device, card=card))


def _with_intra(cluster: Cluster, factor: float) -> Cluster:
    return replace(cluster, intra=_faster(cluster.intra, factor))


def _with_inter(cluster: Cluster, factor: float) -> Cluster:
    return cluster if cluster.inter is None else replace(cluster, inter=_faster(cluster.inter, factor))


def _with_host_link(cluster: Cluster, factor: float) -> Cluster:
    return cluster if cluster.host_link is None else replace(cluster, host_link=_faster(cluster.host_link, factor))


def _with_host_memory(cluster: Cluster, factor: float) -> Cluster:
    if cluster.host is None:
        return cluster
    rate = cluster.host.dram_bytes_per_s
    faster = {"dram_bytes_per_s": rate.model_copy(update={"value": rate.value * factor})}
    return replace(cluster, host=cluster.host.model_copy(update=faster))


def _with_host_peak(cluster: Cluster, factor: float) -> Cluster:
    if cluster.host is None:
        return cluster
    peaks = {
        dtype: peak.model_copy(update={"value": peak.value * factor})
        for dtype, peak in cluster.host.peak_flop_per_s.items()
    }
    return replace(cluster, host=cluster.host.model_copy(update={"peak_flop_per_s": peaks}))


def _faster(link: LinkCard, factor: float) -> LinkCard:
    rate = link.bytes_per_s
    return link.model_copy(update={"bytes_per_s": rate.model_copy(update={"value": rate.value * factor})})
