"""What all schedules share: the layer before its experts, with the gather and scatter of tensor-parallel attention."""

from __future__ import annotations

from sim.program import After, Layer, Program


def attend(program: Program, layer: Layer, after: After) -> int:
    """Index of the operation after which the layer's hidden states are at home, ready for the gate if it has one."""
    return core(program, layer, project(program, layer, after))


def project(program: Program, layer: Layer, after: After) -> After:
    """The operation after which the core of attention can begin: gathered and, where told apart, projected."""
    if layer.gather is not None:
        after = program.exchange(layer.gather, after=after)
    return after if layer.projections is None else program.compute(layer.projections, after=after)


def core(program: Program, layer: Layer, after: After) -> int:
    """Index of the operation after which attention, and the dense MLP of a layer without experts, are done."""
    attended = program.compute(layer.attention, after=after)
    if layer.scatter is not None:
        attended = program.exchange(layer.scatter, after=attended)
    return attended if layer.mlp is None else program.compute(layer.mlp, after=attended)


def unattend(program: Program, layer: Layer, after: After) -> tuple[int, int]:
    """Backwards: the operations after which the layer's gradients of weights, and that of its input, are there."""
    if layer.mlp is not None:
        after = program.compute(layer.mlp, after=after)
    if layer.gather is not None:
        after = program.exchange(layer.gather, after=after)
    attended = program.compute(layer.attention, after=after)
    return attended, attended if layer.scatter is None else program.exchange(layer.scatter, after=attended)
