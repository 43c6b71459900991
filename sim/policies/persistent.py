"""One persistent kernel for an MoE layer (FlashMoE, arXiv 2506.04667): packets of rows are worked on as they arrive."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import combine, dispatch, work
from sim.program import After, Program, Step


def persistent(program: Program, step: Step) -> None:
    """Issue the device's own rows, then packets in the order of their arrival; each one's results leave at once."""
    previous: After = None
    for layer in step.layers:
        gated = leave(program, layer, attend(program, layer, previous))
        arrived = dispatch(program, layer, gated)
        own = [program.compute(w, after=gated) for w in (layer.shared, layer.local) if w is not None]
        back = combine(program, layer, work(program, layer, arrived))
        previous = settle(program, layer, [*own, *back] or gated)
    program.compute(step.head, after=previous)
