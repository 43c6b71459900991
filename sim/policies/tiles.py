"""Overlap by tiles (Comet, arXiv 2502.19811, section 3): exchange and GEMMs of the experts in fused kernels.

Some SMs move tokens while the others multiply, so that the ports and the compute lane work side by side.
"""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.program import After, Program, Step


def tiles(program: Program, step: Step) -> None:
    """Issue rows of the device's own tokens first, others as they arrive, then columns that leave as they are done."""
    previous: After = None
    for layer in step.layers:
        previous = attend(program, layer, previous)
        if layer.mlp is not None:
            previous = program.compute(layer.mlp, after=previous)
        if layer.gate is None:
            continue
        gated = leave(program, layer, previous)
        arrived = [program.exchange(tile.dispatch, after=gated) for tile in layer.chunks]
        for work in (layer.shared, layer.local):
            if work is not None:
                program.compute(work, after=gated)
        rows = [program.compute(t.experts, after=here) for t, here in zip(layer.chunks, arrived, strict=True)]
        columns = [program.compute(t.down, after=rows) for t in layer.chunks if t.down is not None]
        back = [program.exchange(t.combine, after=done) for t, done in zip(layer.chunks, columns, strict=True)]
        previous = settle(program, layer, back)
    program.compute(step.head, after=previous)
