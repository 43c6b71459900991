"""One operation after the other: attention, gate, dispatch, experts, combine."""

from __future__ import annotations

from sim.policies.attend import attend
from sim.program import Program, Step


def sequential(program: Program, step: Step) -> None:
    """Issue every layer in order, nothing overlapped."""
    previous: int | None = None
    for layer in step.layers:
        previous = attend(program, layer, previous)
        if layer.mlp is not None:
            previous = program.compute(layer.mlp, after=previous)
        if layer.gate is None or layer.whole is None:
            continue
        gated = program.compute(layer.gate, after=previous)
        previous = program.exchange(layer.whole.dispatch, after=gated)
        if layer.shared is not None:
            previous = program.compute(layer.shared, after=previous)
        worked = program.compute(layer.whole.experts, after=previous)
        previous = program.exchange(layer.whole.combine, after=worked)
    program.compute(step.head, after=previous)
