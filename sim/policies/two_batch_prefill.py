"""Two-batch overlap of DeepSeek's prefill: the published order of its kernels (profile-data repository, 2025-02).

ATTN_B, SHARED_A, ATTN_A, MLP_B, MLP_A, SHARED_B are computed beside COMBINE_A, DISPATCH_B, DISPATCH_A, COMBINE_B;
COMBINE_A and SHARED_A are of the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.around import settle
from sim.policies.attend import attend
from sim.policies.travel import arrive, come_back
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
        gated_b = _attend(program, b, previous_b)
        arrived_b = [arrive(program, chunk, gated_b) for chunk in b.chunks]
        if behind is not None:
            previous_a = _finish(program, behind, back_a, gated_a)
        gated_a = _attend(program, a, previous_a)
        arrived_a = [arrive(program, chunk, gated_a) for chunk in a.chunks]
        worked_b = _work(program, b, arrived_b)
        back_b = _return(program, b, worked_b)
        worked_a = _work(program, a, arrived_a)
        behind = a if a.chunks else None
        previous_a, previous_b = gated_a, _finish(program, b, back_b, gated_b)
    if behind is not None:
        previous_a = _finish(program, behind, _return(program, behind, worked_a), gated_a)
    program.compute(second.head, after=previous_b)
    program.compute(first.head, after=previous_a)


def _attend(program: Program, layer: Layer, after: After) -> int:
    """Index of the gate, or of the dense MLP where there is none."""
    last = attend(program, layer, after)
    for work in (layer.mlp, layer.gate, *layer.before_dispatch):
        if work is not None:
            last = program.compute(work, after=last)
    return last


def _work(program: Program, layer: Layer, arrived: Sequence[int]) -> list[int]:
    return [program.compute(c.experts, after=at) for c, at in zip(layer.chunks, arrived, strict=True)]


def _return(program: Program, layer: Layer | None, worked: Sequence[int]) -> list[int]:
    chunks = () if layer is None else layer.chunks
    return [come_back(program, c, at) for c, at in zip(chunks, worked, strict=True)]


def _finish(program: Program, layer: Layer, back: list[int], gated: int) -> After:
    """The layer's shared experts, and the end of the layer."""
    shared = [] if layer.shared is None else [program.compute(layer.shared, after=gated)]
    return settle(program, layer, [*back, *shared] or gated)
