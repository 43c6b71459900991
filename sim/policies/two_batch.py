"""Two-batch overlap (DeepSeek-V3, arXiv 2412.19437, section 3.4): while one microbatch travels, another computes."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import arrive, come_back
from sim.program import After, Program, Step


def two_batch(program: Program, step: Step) -> None:
    """Issue the microbatches layer by layer in turn: while one's tokens travel, the next one attends or works."""
    passes = step.microbatches
    previous: list[After] = [None] * len(passes)
    for layers in zip(*(microbatch.layers for microbatch in passes), strict=True):
        gated = []
        for number, layer in enumerate(layers):
            previous[number] = attend(program, layer, previous[number])
            if layer.mlp is not None:
                previous[number] = program.compute(layer.mlp, after=previous[number])
            gated.append(leave(program, layer, previous[number]))
        arrived = [[arrive(program, c, at) for c in layer.chunks] for layer, at in zip(layers, gated, strict=True)]
        for number, (layer, here) in enumerate(zip(layers, arrived, strict=True)):
            if layer.shared is not None:
                program.compute(layer.shared, after=gated[number])
            worked = [program.compute(c.experts, after=at) for c, at in zip(layer.chunks, here, strict=True)]
            back = [come_back(program, c, at) for c, at in zip(layer.chunks, worked, strict=True)]
            previous[number] = settle(program, layer, back or gated[number])
    for microbatch, after in zip(passes, previous, strict=True):
        program.compute(microbatch.head, after=after)
