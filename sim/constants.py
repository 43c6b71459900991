"""The numbers that a result rests on, with their origins, for the foot of every report."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from scenarios.models import ModelCard
from scenarios.sources import Sourced
from sim.result import Constant
from sim.setting import Setting


def constants_of(setting: Setting) -> tuple[Constant, ...]:
    """Constants of the model, device, links and kernel laws of a setting."""
    cluster = setting.cluster
    cards: list[tuple[str, BaseModel]] = [
        (cluster.device.card.name, cluster.device.card),
        (f"{cluster.device.card.name} kernels", cluster.device.constants),
        (cluster.intra.name, cluster.intra),
    ]
    if cluster.inter is not None and cluster.n_nodes > 1:
        cards.append((cluster.inter.name, cluster.inter))
    return (*_model_constants(setting.model), *(c for prefix, card in cards for c in _sourced(prefix, card)))


def _model_constants(model: ModelCard) -> Iterator[Constant]:
    for name, source in model.sources.items():
        what = "shape" if name == "default" else name
        yield Constant(name=f"{model.name} {what}", value="card", kind=source.kind, source=source.source)


def _sourced(prefix: str, card: object) -> Iterator[Constant]:
    if isinstance(card, Sourced):
        value = f"{card.value:g}" if isinstance(card.value, float) else str(card.value)
        yield Constant(name=prefix, value=value, kind=card.kind, source=card.source)
    elif isinstance(card, BaseModel):
        for name in type(card).model_fields:
            yield from _sourced(f"{prefix} {name}", getattr(card, name))
    elif isinstance(card, dict):
        for name, entry in card.items():
            yield from _sourced(f"{prefix} {name}", entry)
