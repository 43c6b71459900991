"""The works of a training step, made of those of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from scenarios.training_specs import TrainingSpec
from sim.policies.gradients import FILL
from sim.program import BackwardLayer, Chunk, Layer, Step, Training, Work

BACKWARD, AGAIN = ".backward", ".again"
"""Ends of the kinds of works of a backward pass, and of works of the forward pass that are issued again."""
DENSE_SUM, EXPERT_SUM, HEAD_SUM = "reduce", "reduce.experts", "reduce.head"
"""Kinds of sums of gradients over devices; `DENSE_SUM` of layer -1 is that of the embedding."""
SUMS = frozenset({DENSE_SUM, EXPERT_SUM, HEAD_SUM, FILL})

Record = TypeVar("Record", Layer, Chunk)
Pieces = Mapping[tuple[str, int], int]
"""(kind, layer) -> pieces that a sum of gradients is cut into; sums that nobody shares are left out."""


def training_step(step: Step, pieces: Pieces, spec: TrainingSpec) -> Step:
    """The step with its backward pass, sums of gradients in so many pieces, and the update."""

    def sums(kind: str, layer: int) -> tuple[Work, ...]:
        return tuple(Work(kind, layer, piece) for piece in range(pieces.get((kind, layer), 0)))

    layers = step.layers
    if spec.zero == 3:
        shared = {layer for _, layer in pieces}
        layers = tuple(
            replace(layer, weights=Work("weights", number)) if number in shared else layer
            for number, layer in enumerate(layers)
        )
    back = tuple(
        BackwardLayer(
            works=renamed(layer, BACKWARD),
            again=replace(renamed(layer, AGAIN), weights=None) if spec.recompute == "full" else None,
            experts=sums(EXPERT_SUM, layer.attention.layer),
            others=sums(DENSE_SUM, layer.attention.layer),
        )
        for layer in reversed(layers)
    )
    training = Training(
        head=replace(step.head, kind=step.head.kind + BACKWARD),
        layers=back,
        update=Work("update"),
        head_sums=sums(HEAD_SUM, -1),
        embedding_sums=sums(DENSE_SUM, -1),
        refresh=Work("refresh") if spec.zero in (1, 2) and pieces else None,
    )
    return replace(step, layers=layers, training=training)


def renamed(layer: Layer, end: str) -> Layer:
    """The layer's works with `end` after their kinds."""
    return _changed(layer, lambda work: replace(work, kind=work.kind + end))


def plain_kind(kind: str) -> str:
    """The kind of the forward pass that a work takes as long as, where it has no price of its own."""
    return kind.removesuffix(AGAIN).removesuffix(BACKWARD)


def part_of_step(kind: str) -> int:
    """Part of a training step that a kind of work belongs to: 0 forward, 1 backward, 2 sums of gradients, 3 update."""
    if kind.endswith((BACKWARD, AGAIN)):
        return 1
    return 3 if kind in ("update", "refresh") else 2 if kind in SUMS else 0


def _changed(record: Record, change: Callable[[Work], Work]) -> Record:
    def of(value: object) -> object:
        if isinstance(value, Work):
            return change(value)
        if isinstance(value, Chunk):
            return _changed(value, change)
        return tuple(map(of, value)) if isinstance(value, tuple) else value

    changes: dict[str, Any] = {field.name: of(getattr(record, field.name)) for field in fields(record)}
    return replace(record, **changes)
