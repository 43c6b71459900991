"""What all schedules share: the layer before its experts, with the gather and scatter of tensor-parallel attention."""

from __future__ import annotations

from sim.program import EXCHANGE_LANES, After, Lanes, Layer, Program


def attend(program: Program, layer: Layer, after: After, lanes: Lanes = EXCHANGE_LANES) -> After:
    """The operation after which the layer's hidden states are at home, ready for the gate if it has one.

    lanes  ports of gather and scatter.
    """
    return core(program, layer, project(program, layer, after, lanes), lanes)


def project(program: Program, layer: Layer, after: After, lanes: Lanes = EXCHANGE_LANES) -> After:
    """The operation after which the core of attention can begin: gathered and, where told apart, projected."""
    if layer.gather is not None:
        after = program.exchange(layer.gather, after=after, lanes=lanes)
    return after if layer.projections is None else program.compute(layer.projections, after=after)


def core(program: Program, layer: Layer, after: After, lanes: Lanes = EXCHANGE_LANES) -> After:
    """The operation after which attention, and the dense MLP of a layer without experts, are done."""
    if layer.attention is None:
        return after
    return gathered(program, layer, program.compute(layer.attention, after=after), lanes)


def gathered(program: Program, layer: Layer, attended: int, lanes: Lanes = EXCHANGE_LANES) -> int:
    """Index of the operation after which attended tokens are at home, and the layer's dense MLP is done."""
    if layer.scatter is not None:
        attended = program.exchange(layer.scatter, after=attended, lanes=lanes)
    return attended if layer.mlp is None else program.compute(layer.mlp, after=attended)


def unattend(program: Program, layer: Layer, after: After) -> tuple[int, int]:
    """Backwards: the operations after which the layer's gradients of weights, and that of its input, are there."""
    if layer.mlp is not None:
        after = program.compute(layer.mlp, after=after)
    if layer.gather is not None:
        after = program.exchange(layer.gather, after=after)
    attended = program.compute(layer.own_attention, after=after)
    return attended, attended if layer.scatter is None else program.exchange(layer.scatter, after=attended)
