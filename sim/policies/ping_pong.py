"""Attention and experts on devices of their own, with microbatches to and fro (MegaScale-Infer, arXiv 2504.02263)."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.program import FROM_EXPERTS, INSIDE_LANES, TO_EXPERTS, After, Chunk, Program, Step


def ping_pong(program: Program, step: Step) -> None:
    """Issue the microbatches layer by layer in turn: while one is with the experts, the next ones attend."""
    passes = step.microbatches
    previous: list[After] = [None] * len(passes)
    for layers in zip(*(microbatch.layers for microbatch in passes), strict=True):
        for number, layer in enumerate(layers):
            gated = leave(program, layer, attend(program, layer, previous[number], INSIDE_LANES))
            back = [_visit(program, chunk, gated) for chunk in layer.chunks]
            shared = [] if layer.shared is None else [program.compute(layer.shared, after=gated)]
            previous[number] = settle(program, layer, [*back, *shared] or gated)
    for microbatch, after in zip(passes, previous, strict=True):
        program.compute(microbatch.head, after=after)


def _visit(program: Program, chunk: Chunk, gated: After) -> int:
    """Index of the operation after which the tokens are back from the devices of the experts."""
    arrived = program.exchange(chunk.dispatch, after=gated, lanes=TO_EXPERTS)
    worked = program.beside(chunk.experts, "experts", after=arrived)
    return worked if chunk.combine is None else program.exchange(chunk.combine, after=worked, lanes=FROM_EXPERTS)
