"""Two-batch overlap of DeepSeek's decode: five stages, exchanges without SMs (profile-data repository, 2025-02).

SHARED_A and ATTN0_B beside DISPATCH_A, then MLP_A, then ATTN1_B beside COMBINE_A, and the same with A and B swapped;
ATTN0 are the projections of attention, ATTN1 its core, output projection and gate.
"""

from __future__ import annotations

from sim.policies.around import settle
from sim.policies.travel import arrive, come_back
from sim.program import After, Layer, Program, Step


def two_batch_decode(program: Program, step: Step) -> None:
    """Issue two microbatches; while the one's tokens travel, the other one's attention is computed, half at a time."""
    first, second = step.microbatches
    gated_a: After = _core(program, first.layers[0], _projections(program, first.layers[0], None))
    previous_b: After = None
    following = [*first.layers[1:], None]
    for a, b, next_a in zip(first.layers, second.layers, following, strict=True):
        previous_a, gated_b = _stage(program, a, gated_a, b, previous_b)
        previous_b, gated_a = _stage(program, b, gated_b, next_a, previous_a)
    program.compute(first.head, after=gated_a)
    program.compute(second.head, after=previous_b)


def _stage(program: Program, here: Layer, gated: After, other: Layer | None, previous: After) -> tuple[After, After]:
    """One microbatch through the experts beside the attention of the `other`: ends of the experts, and of its gate.

    Without another layer the second end is that of what came before it, `previous`.
    """
    arrived = [arrive(program, chunk, gated) for chunk in here.chunks]
    shared = [] if here.shared is None else [program.compute(here.shared, after=gated)]
    projected = previous if other is None else _projections(program, other, previous)
    worked = [program.compute(c.experts, after=at) for c, at in zip(here.chunks, arrived, strict=True)]
    back = [come_back(program, c, at) for c, at in zip(here.chunks, worked, strict=True)]
    cored = projected if other is None else _core(program, other, projected)
    return settle(program, here, [*back, *shared] or gated), cored


def _projections(program: Program, layer: Layer, after: After) -> After:
    if layer.gather is not None:
        after = program.exchange(layer.gather, after=after)
    return after if layer.projections is None else program.compute(layer.projections, after=after)


def _core(program: Program, layer: Layer, after: After) -> int:
    """Index of the gate, or of the dense MLP where there is none."""
    last = program.compute(layer.attention, after=after)
    if layer.scatter is not None:
        last = program.exchange(layer.scatter, after=last)
    for work in (layer.mlp, layer.gate, *layer.before_dispatch):
        if work is not None:
            last = program.compute(work, after=last)
    return last
