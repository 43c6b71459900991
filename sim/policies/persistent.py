"""One persistent kernel for an MoE layer (FlashMoE, arXiv 2506.04667): packets of rows are worked on as they arrive."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.program import After, Program, Step


def persistent(program: Program, step: Step) -> None:
    """Issue the device's own rows, then packets in the order of their arrival; each one's results leave at once."""
    previous: After = None
    for layer in step.layers:
        previous = attend(program, layer, previous)
        if layer.mlp is not None:
            previous = program.compute(layer.mlp, after=previous)
        if layer.gate is None:
            continue
        gated = leave(program, layer, previous)
        arrived = [program.exchange(packet.dispatch, after=gated) for packet in layer.chunks]
        own = [program.compute(work, after=gated) for work in (layer.shared, layer.local) if work is not None]
        worked = [program.compute(p.experts, after=here) for p, here in zip(layer.chunks, arrived, strict=True)]
        back = [program.exchange(p.combine, after=done) for p, done in zip(layer.chunks, worked, strict=True)]
        previous = settle(program, layer, [*own, *back])
    program.compute(step.head, after=previous)
