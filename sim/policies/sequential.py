"""One operation after the other: attention, gate, then for every chunk dispatch, experts, combine."""

from __future__ import annotations

from sim.policies.around import leave, settle, unleave, unsettle
from sim.policies.attend import attend, unattend
from sim.policies.gradients import Gradients
from sim.policies.travel import arrive, come_back
from sim.program import After, BackwardLayer, Layer, Program, Step


def sequential(program: Program, step: Step) -> None:
    """Issue every layer in order, nothing overlapped."""
    previous: After = None
    for layer in step.layers:
        previous = forward(program, layer, previous)
    program.compute(step.head, after=previous)


def forward(program: Program, layer: Layer, after: After) -> After:
    """The operation after which the layer is done."""
    after = leave(program, layer, attend(program, layer, after))
    if layer.shared is not None:
        after = program.compute(layer.shared, after=after)
    return settle(program, layer, work_in_turn(program, layer, after))


def backward(program: Program, layer: BackwardLayer, after: After, gradients: Gradients) -> After:
    """The operation after which the gradient of the layer's input is there."""
    works = layer.works
    after = unsettle(program, works, after)
    if not works.chunks:
        gradients.gap()
    for chunk in works.chunks:
        arrived = arrive(program, chunk, after)
        gradients.gap()
        worked = program.compute(chunk.experts, after=arrived)
        after = come_back(program, chunk, worked)
        gradients.ready(layer.experts if chunk is works.chunks[-1] else (), worked)
        gradients.gap()
    if works.shared is not None:
        after = program.compute(works.shared, after=after)
    attended, after = unattend(program, works, unleave(program, works, after))
    gradients.ready(layer.others, attended)
    return after


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
