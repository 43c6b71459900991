"""Overlap by chunks (Tutel, arXiv 2206.03382, section 3.3): while one chunk computes, another one travels."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import combine, dispatch, work
from sim.program import After, Program, Step


def chunked(program: Program, step: Step) -> None:
    """Issue every layer's tokens in chunks; shared experts run while the first chunk is on its way."""
    previous: After = None
    for layer in step.layers:
        gated = leave(program, layer, attend(program, layer, previous))
        fetched = gated if layer.fetch is None else program.exchange(layer.fetch, after=gated)
        arrived = dispatch(program, layer, gated)
        if layer.shared is not None:
            program.compute(layer.shared, after=gated)
        at_home = [] if layer.local is None else [program.compute(layer.local, after=fetched)]
        back = combine(program, layer, work(program, layer, arrived))
        previous = settle(program, layer, [*back, *at_home] or gated)
    program.compute(step.head, after=previous)
