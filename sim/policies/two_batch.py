"""Two-batch overlap (DeepSeek-V3, arXiv 2412.19437, section 3.4): while one microbatch travels, another computes."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import combine, dispatch, work
from sim.program import After, Program, Step


def two_batch(program: Program, step: Step) -> None:
    """Issue the microbatches layer by layer in turn: while one's tokens travel, the next one attends or works."""
    passes = step.microbatches
    previous: list[After] = [None] * len(passes)
    for layers in zip(*(microbatch.layers for microbatch in passes), strict=True):
        gated = [leave(program, a, attend(program, a, after)) for a, after in zip(layers, previous, strict=True)]
        arrived = [dispatch(program, layer, at) for layer, at in zip(layers, gated, strict=True)]
        for number, (layer, here) in enumerate(zip(layers, arrived, strict=True)):
            if layer.shared is not None:
                program.compute(layer.shared, after=gated[number])
            back = combine(program, layer, work(program, layer, here))
            previous[number] = settle(program, layer, back or gated[number])
    for microbatch, after in zip(passes, previous, strict=True):
        program.compute(microbatch.head, after=after)
