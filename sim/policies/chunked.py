"""Overlap by chunks (Tutel, arXiv 2206.03382, section 3.3): while one chunk computes, another one travels."""

from __future__ import annotations

from sim.policies.around import leave, settle, unleave, unsettle
from sim.policies.attend import attend, unattend
from sim.policies.gradients import Gradients
from sim.policies.travel import combine, come_back, dispatch, work
from sim.program import After, BackwardLayer, Layer, Program, Step


def chunked(program: Program, step: Step) -> None:
    """Issue every layer's tokens in chunks; shared experts run while the first chunk is on its way."""
    previous: After = None
    for layer in step.layers:
        previous = forward(program, layer, previous)
    program.compute(step.head, after=previous)


def forward(program: Program, layer: Layer, after: After) -> After:
    """The operations after which the layer is done."""
    gated = leave(program, layer, attend(program, layer, after))
    fetched = gated if layer.fetch is None else program.exchange(layer.fetch, after=gated)
    arrived = dispatch(program, layer, gated)
    if layer.shared is not None:
        program.compute(layer.shared, after=gated)
    at_home = [] if layer.local is None else [program.compute(layer.local, after=fetched)]
    back = combine(program, layer, work(program, layer, arrived))
    return settle(program, layer, [*back, *at_home] or gated)


def backward(program: Program, layer: BackwardLayer, after: After, gradients: Gradients) -> After:
    """The operation after which the gradient of the layer's input is there."""
    works = layer.works
    after = unsettle(program, works, after)
    arrived = dispatch(program, works, after)
    gradients.gap()
    if works.shared is not None:
        program.compute(works.shared, after=after)
    worked = work(program, works, arrived)
    back: list[int] = []
    for chunk, at in zip(works.chunks, worked, strict=True):
        back.append(come_back(program, chunk, at))
        gradients.ready(layer.experts if chunk is works.chunks[-1] else (), at)
        gradients.gap()
    attended, after = unattend(program, works, unleave(program, works, back or after))
    gradients.ready(layer.others, attended)
    return after
