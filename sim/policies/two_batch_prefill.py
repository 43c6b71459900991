"""Two-batch overlap of DeepSeek's prefill: the published order of its kernels (profile-data repository, 2025-02).

ATTN_B, SHARED_A, ATTN_A, MLP_B, MLP_A, SHARED_B are computed beside COMBINE_A, DISPATCH_B, DISPATCH_A, COMBINE_B;
COMBINE_A and SHARED_A are of the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.attend import attend
from sim.policies.travel import arrive, come_back
from sim.program import Layer, Program, Step


def two_batch_prefill(program: Program, step: Step) -> None:
    """Issue two microbatches A and B; A is half a layer behind, so that each one travels while the other computes."""
    first, second = step.microbatches
    previous_a, previous_b = list[int](), list[int]()
    behind: Layer | None = None
    gated_a, worked_a = 0, list[int]()
    for a, b in zip(first.layers, second.layers, strict=True):
        if behind is not None:
            previous_a = [come_back(program, c, at) for c, at in zip(behind.chunks, worked_a, strict=True)]
        gated_b = _attend(program, b, previous_b)
        arrived_b = [arrive(program, chunk, gated_b) for chunk in b.chunks]
        if behind is not None and behind.shared is not None:
            previous_a = [*previous_a, program.compute(behind.shared, after=gated_a)]
        gated_a = _attend(program, a, previous_a)
        arrived_a = [arrive(program, chunk, gated_a) for chunk in a.chunks]
        worked_b = _work(program, b, arrived_b)
        back_b = [come_back(program, c, at) for c, at in zip(b.chunks, worked_b, strict=True)]
        worked_a = _work(program, a, arrived_a)
        shared_b = [] if b.shared is None else [program.compute(b.shared, after=gated_b)]
        behind = a if a.chunks else None
        previous_a, previous_b = [gated_a], [*back_b, *shared_b] or [gated_b]
    if behind is not None:
        previous_a = [come_back(program, c, at) for c, at in zip(behind.chunks, worked_a, strict=True)]
        if behind.shared is not None:
            program.compute(behind.shared, after=gated_a)
    program.compute(second.head, after=previous_b)
    program.compute(first.head, after=previous_a)


def _attend(program: Program, layer: Layer, after: Sequence[int]) -> int:
    """Index of the gate, or of the dense MLP where there is none."""
    last = attend(program, layer, after)
    for work in (layer.mlp, layer.gate):
        if work is not None:
            last = program.compute(work, after=last)
    return last


def _work(program: Program, layer: Layer, arrived: Sequence[int]) -> list[int]:
    return [program.compute(c.experts, after=at) for c, at in zip(layer.chunks, arrived, strict=True)]
