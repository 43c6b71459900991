"""One operation after the other: attention, gate, then for every chunk dispatch, experts, combine."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import arrive, come_back
from sim.program import After, Layer, Program, Step


def sequential(program: Program, step: Step) -> None:
    """Issue every layer in order, nothing overlapped."""
    previous: After = None
    for layer in step.layers:
        previous = leave(program, layer, attend(program, layer, previous))
        if layer.shared is not None:
            previous = program.compute(layer.shared, after=previous)
        previous = settle(program, layer, work_in_turn(program, layer, previous))
    program.compute(step.head, after=previous)


def work_in_turn(program: Program, layer: Layer, after: After) -> After:
    """The operation after which all experts of the layer have worked: experts that move first, then tokens."""
    if layer.fetch is not None:
        after = program.exchange(layer.fetch, after=after)
    if layer.local is not None:
        after = program.compute(layer.local, after=after)
    for chunk in layer.chunks:
        dispatched = arrive(program, chunk, after)
        worked = program.compute(chunk.experts, after=dispatched)
        after = come_back(program, chunk, worked)
    return after
