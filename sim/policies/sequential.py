"""One operation after the other: attention, gate, then for every chunk dispatch, experts, combine."""

from __future__ import annotations

from sim.policies.attend import attend
from sim.policies.travel import arrive, come_back
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
            dispatched = arrive(program, chunk, previous)
            worked = program.compute(chunk.experts, after=dispatched)
            previous = come_back(program, chunk, worked)
    program.compute(step.head, after=previous)
