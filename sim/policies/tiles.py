"""Overlap by tiles (Comet, arXiv 2502.19811, section 3): exchange and GEMMs of the experts in fused kernels.

Some SMs move tokens while the others multiply, so that the ports and the compute lane work side by side.
"""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import combine, dispatch, work
from sim.program import After, Program, Step


def tiles(program: Program, step: Step) -> None:
    """Issue rows of the device's own tokens first, others as they arrive, then columns that leave as they are done."""
    previous: After = None
    for layer in step.layers:
        gated = leave(program, layer, attend(program, layer, previous))
        arrived = dispatch(program, layer, gated)
        for own in (layer.shared, layer.local):
            if own is not None:
                program.compute(own, after=gated)
        rows = work(program, layer, arrived)
        columns = [program.compute(tile.down, after=rows) for tile in layer.chunks if tile.down is not None]
        previous = settle(program, layer, combine(program, layer, columns) or gated)
    program.compute(step.head, after=previous)
