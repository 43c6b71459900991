"""One operation after the other: attention, gate, then for every chunk dispatch, experts, combine."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.program import After, Program, Step


def sequential(program: Program, step: Step) -> None:
    """Issue every layer in order, nothing overlapped."""
    previous: After = None
    for layer in step.layers:
        previous = attend(program, layer, previous)
        if layer.mlp is not None:
            previous = program.compute(layer.mlp, after=previous)
        previous = leave(program, layer, previous)
        if layer.shared is not None:
            previous = program.compute(layer.shared, after=previous)
        for chunk in layer.chunks:
            dispatched = program.exchange(chunk.dispatch, after=previous)
            worked = program.compute(chunk.experts, after=dispatched)
            previous = program.exchange(chunk.combine, after=worked)
        previous = settle(program, layer, previous)
    program.compute(step.head, after=previous)
