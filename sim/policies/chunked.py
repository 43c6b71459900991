"""Overlap by chunks (Tutel, arXiv 2206.03382, section 3.3): while one chunk computes, another one travels."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import arrive, come_back
from sim.program import After, Program, Step


def chunked(program: Program, step: Step) -> None:
    """Issue every layer's tokens in chunks; shared experts run while the first chunk is on its way."""
    previous: After = None
    for layer in step.layers:
        previous = attend(program, layer, previous)
        if layer.mlp is not None:
            previous = program.compute(layer.mlp, after=previous)
        if layer.gate is None:
            continue
        gated = leave(program, layer, previous)
        fetched = gated if layer.fetch is None else program.exchange(layer.fetch, after=gated)
        arrived = [arrive(program, chunk, gated) for chunk in layer.chunks]
        if layer.shared is not None:
            program.compute(layer.shared, after=gated)
        at_home = [] if layer.local is None else [program.compute(layer.local, after=fetched)]
        worked = [program.compute(c.experts, after=here) for c, here in zip(layer.chunks, arrived, strict=True)]
        back = [come_back(program, c, done) for c, done in zip(layer.chunks, worked, strict=True)]
        previous = settle(program, layer, [*back, *at_home])
    program.compute(step.head, after=previous)
