"""What all schedules share: attention of a layer, with its gather and scatter where attention is tensor parallel."""

from __future__ import annotations

from sim.program import After, Layer, Program


def attend(program: Program, layer: Layer, after: After) -> int:
    """Index of the operation after which the layer's hidden states are on their home devices."""
    if layer.gather is not None:
        after = program.exchange(layer.gather, after=after)
    if layer.projections is not None:
        after = program.compute(layer.projections, after=after)
    attended = program.compute(layer.attention, after=after)
    if layer.scatter is not None:
        attended = program.exchange(layer.scatter, after=attended)
    return attended
