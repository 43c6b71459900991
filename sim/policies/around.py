"""What all schedules share: what a device does to its tokens before they leave for experts, and when they are back."""

from __future__ import annotations

from sim.program import After, Layer, Program


def leave(program: Program, layer: Layer, after: int) -> int:
    """Index of the operation after which tokens are ready to leave: routed, and in the form in which they travel."""
    for work in (layer.gate, *layer.before_dispatch):
        if work is not None:
            after = program.compute(work, after=after)
    return after


def settle(program: Program, layer: Layer, after: After) -> After:
    """The operation after which the results that came back have the form of the layer's hidden states."""
    for work in layer.after_combine:
        after = program.compute(work, after=after)
    return after


def unsettle(program: Program, layer: Layer, after: After) -> After:
    """Backwards: the operation after which gradients have the form in which experts' results came back."""
    for work in reversed(layer.after_combine):
        after = program.compute(work, after=after)
    return after


def unleave(program: Program, layer: Layer, after: After) -> After:
    """Backwards: the operation after which gradients have passed the gate and what came before the dispatch."""
    for work in (*reversed(layer.before_dispatch), layer.gate):
        if work is not None:
            after = program.compute(work, after=after)
    return after


def listed(after: After) -> list[int]:
    """The operations as a list."""
    return [] if after is None else [after] if isinstance(after, int) else list(after)
