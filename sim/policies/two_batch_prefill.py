"""Two-batch overlap of DeepSeek's prefill: the published order of its kernels (profile-data repository, 2025-02).

ATTN_B, SHARED_A, ATTN_A, MLP_B, MLP_A, SHARED_B are computed beside COMBINE_A, DISPATCH_B, DISPATCH_A, COMBINE_B;
COMBINE_A and SHARED_A are of the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import combine, dispatch, work
from sim.program import After, Layer, Program, Step


def two_batch_prefill(program: Program, step: Step) -> None:
    """Issue two microbatches A and B; A is half a layer behind, so that each one travels while the other computes."""
    first, second = step.microbatches
    previous_a: After = []
    previous_b: After = []
    behind: Layer | None = None
    gated_a, worked_a = 0, list[int]()
    for a, b in zip(first.layers, second.layers, strict=True):
        back_a = _return(program, behind, worked_a)
        gated_b = leave(program, b, attend(program, b, previous_b))
        arrived_b = dispatch(program, b, gated_b)
        if behind is not None:
            previous_a = _finish(program, behind, back_a, gated_a)
        gated_a = leave(program, a, attend(program, a, previous_a))
        arrived_a = dispatch(program, a, gated_a)
        worked_b = work(program, b, arrived_b)
        back_b = combine(program, b, worked_b)
        worked_a = work(program, a, arrived_a)
        behind = a if a.chunks else None
        previous_a, previous_b = gated_a, _finish(program, b, back_b, gated_b)
    if behind is not None:
        previous_a = _finish(program, behind, combine(program, behind, worked_a), gated_a)
    program.compute(second.head, after=previous_b)
    program.compute(first.head, after=previous_a)


def _return(program: Program, layer: Layer | None, worked: Sequence[int]) -> list[int]:
    return [] if layer is None else combine(program, layer, worked)


def _finish(program: Program, layer: Layer, back: list[int], gated: int) -> After:
    """The layer's shared experts, and the end of the layer."""
    shared = [] if layer.shared is None else [program.compute(layer.shared, after=gated)]
    return settle(program, layer, [*back, *shared] or gated)
