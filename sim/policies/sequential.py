"""One operation after the other: attention, gate, then for every chunk dispatch, experts, combine."""

from __future__ import annotations

from sim.policies.attend import attend
from sim.program import Program, Step


def sequential(program: Program, step: Step) -> None:
    """Issue every layer in order, nothing overlapped."""
    previous: int | None = None
    for layer in step.layers:
        previous = attend(program, layer, previous)
        for work in (layer.mlp, layer.gate, layer.shared):
            if work is not None:
                previous = program.compute(work, after=previous)
        for chunk in layer.chunks:
            dispatched = program.exchange(chunk.dispatch, after=previous)
            worked = program.compute(chunk.experts, after=dispatched)
            previous = program.exchange(chunk.combine, after=worked)
    program.compute(step.head, after=previous)
