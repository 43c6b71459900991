"""The numbers that a result rests on, with their origins, for the foot of every report."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import BaseModel

from hwmodels.cluster import Cluster
from hwmodels.fitted import Fitted
from hwmodels.gradients import CORE_BACKWARD
from hwmodels.library import find_cpu_kernels, find_ssd
from scenarios.models import ModelCard
from scenarios.sources import Sourced
from sim.energy import energy_basis
from sim.laws_used import asked_shapes, used_laws
from sim.offload.tiers import copy_law
from sim.result import Constant
from sim.setting import Setting


def constants_of(
    setting: Setting, kernels: Collection[str] = (), *, hosts: bool = False, drives: Collection[str] = ()
) -> tuple[Constant, ...]:
    """Constants of the model, device, links and kernel laws of a setting whose exchanges use these `kernels`.

    hosts  those of the host and of the way to it, too; drives: those of these drives.
    """
    cluster = setting.cluster
    cards: list[tuple[str, BaseModel]] = [
        (cluster.device.card.name, cluster.device.card),
        *((f"{cluster.device.kernels.name} {name}", law) for name, law in used_laws(setting).items()),
        (cluster.intra.name, cluster.intra),
    ]
    if cluster.inter is not None and cluster.n_nodes > 1:
        cards.append((cluster.inter.name, cluster.inter))
    if cluster.collectives is not None and (setting.attention_tp > 1 or setting.trains or "nccl" in kernels):
        cards += [(f"{cluster.collectives.name} {law.op} {law.n_devices}", law) for law in cluster.collectives.laws]
    links = (cluster.intra.name, cluster.inter.name if cluster.inter is not None and cluster.n_nodes > 1 else None)
    cards += [(card.name, card) for card in cluster.exchanges if card.kernel in kernels and card.link in links]
    if hosts:
        cards += _host_cards(cluster)
    cards += [(name, find_ssd(name, cluster.cards)) for name in drives]
    return (
        *_model_constants(setting.model),
        *(c for prefix, card in cards for c in _sourced(prefix, card)),
        *_tables(setting),
        *_energy(setting),
        *_stated(setting),
        *_of_training(setting),
    )


def _energy(setting: Setting) -> Iterator[Constant]:
    """What energies of the results go by."""
    basis = energy_basis(setting)
    if basis is not None:
        kind = "derived" if basis == "accesses and multiplications" else "assumed"
        source = "devices alone; the card's numbers are above"
        yield Constant(name="energy_j_per_token", value=basis, kind=kind, source=source)


def _stated(setting: Setting) -> Iterator[Constant]:
    """What the scenario says of the device beside its cards."""
    device = setting.cluster.device
    if device.experts_slowdown != 1:
        name, value = f"{device.card.name} experts_slowdown", f"{device.experts_slowdown:g}"
        yield Constant(name=name, value=value, kind="assumed", source="scenario")
    for width, whose in () if setting.widths is None else setting.widths.used():
        law = f"{width.dtype} law" if width.time_frac is None else f"{width.time_frac:g} x {width.dtype} law"
        yield Constant(
            name=f"experts of {width.bits:g} bits",
            value=f"{whose.mean():.1%}, {width.value_bytes:g} bytes a weight, {law}",
            kind="assumed" if width.time_frac is None else "published",
            source=width.source or "scenario; no kernel of these bits was timed for this project",
        )


def _host_cards(cluster: Cluster) -> Iterator[tuple[str, BaseModel]]:
    if cluster.host is None or cluster.host_link is None:
        return
    yield cluster.host.name, cluster.host
    yield cluster.host.kernels, find_cpu_kernels(cluster.host.kernels).constants
    yield cluster.host_link.name, cluster.host_link
    if (law := copy_law(cluster.host_link)) is not None:
        yield f"{cluster.host_link.name} copies to the device", law


def _of_training(setting: Setting) -> Iterator[Constant]:
    if setting.trains:
        source = "2.5 times the FLOP at 63 instead of 73 % of the peak, FlashAttention-2 (arXiv 2307.08691)"
        value = f"{CORE_BACKWARD:.2f} x forward"
        yield Constant(name="backward pass of attention's core", value=value, kind="published", source=source)
        yield Constant(
            name="gradients of products and experts",
            value="laws",
            kind="assumed",
            source="laws of the forward kernels, shapes transposed; backward kernels were not timed for this project",
        )


def _tables(setting: Setting) -> Iterator[Constant]:
    """Tables of measured kernels that correct laws, with how many of the shapes asked of them they hold."""
    device = setting.cluster.device
    for (block, dtype), shapes in asked_shapes(setting).items():
        held = device.measured.blocks.get((block, dtype))
        if held is None:
            continue
        found = [shape for shape in shapes if shape in held.surfaces]
        rows = sum(held.surfaces[shape].n_points for shape in found)
        named = ", ".join("x".join(f"{size:g}" for size in shape) for shape in found)
        yield Constant(
            name=f"{device.kernels.name} {block} {dtype} table",
            value=f"{len(found)} of {len(shapes)} shapes, {rows} points",
            kind="measured",
            source=f"{', '.join(held.files)} ({held.n_rows:,} rows)" + (f": {named}" if named else ""),
        )


def _model_constants(model: ModelCard) -> Iterator[Constant]:
    for name, source in model.sources.items():
        what = "shape" if name == "default" else name
        yield Constant(name=f"{model.name} {what}", value="card", kind=source.kind, source=source.source)


def _sourced(prefix: str, card: object) -> Iterator[Constant]:
    if isinstance(card, Sourced):
        value = f"{card.value:g}" if isinstance(card.value, float) else str(card.value)
        yield Constant(name=prefix, value=value, kind=card.kind, source=card.source)
    elif isinstance(card, Fitted):
        error = "" if card.residuals is None else f", {card.residuals.mean_ape:.1%} off on rows left out"
        yield Constant(name=prefix, value=f"law{error}", kind=card.kind, source=card.source)
    elif isinstance(card, BaseModel):
        for name in type(card).model_fields:
            yield from _sourced(f"{prefix} {name}", getattr(card, name))
    elif isinstance(card, dict):
        for name, entry in card.items():
            yield from _sourced(f"{prefix} {name}", entry)
