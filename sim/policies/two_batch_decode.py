"""Two-batch overlap of DeepSeek's decode: five stages, exchanges without SMs (profile-data repository, 2025-02).

SHARED_A and ATTN0_B beside DISPATCH_A, then MLP_A, then ATTN1_B beside COMBINE_A, and the same with A and B swapped;
ATTN0 are the projections of attention, ATTN1 its core, output projection and gate.
"""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import core, project
from sim.policies.travel import combine, dispatch, work
from sim.program import After, Layer, Program, Step


def two_batch_decode(program: Program, step: Step) -> None:
    """Issue two microbatches; while the one's tokens travel, the other one's attention is computed, half at a time."""
    first, second = step.microbatches
    gated_a: After = _gate(program, first.layers[0], project(program, first.layers[0], None))
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
    arrived = dispatch(program, here, gated)
    shared = [] if here.shared is None else [program.compute(here.shared, after=gated)]
    projected = previous if other is None else project(program, other, previous)
    back = combine(program, here, work(program, here, arrived))
    ready = projected if other is None else _gate(program, other, projected)
    return settle(program, here, [*back, *shared] or gated), ready


def _gate(program: Program, layer: Layer, projected: After) -> int:
    return leave(program, layer, core(program, layer, projected))
