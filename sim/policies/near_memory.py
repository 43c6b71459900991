"""PIM units beside their device (`schedule.pim`): attention of requests and experts, on the one, the other, or both."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import gathered, project
from sim.policies.travel import arrive, come_back
from sim.program import After, Layer, Program, Step, Units, Work


def near_memory(program: Program, step: Step) -> None:
    """Issue every layer in order; its two shared works begin together where the memory serves both at a time."""
    previous: After = None
    for layer in step.layers:
        previous = _layer(program, layer, previous)
    program.compute(step.head, after=previous)


def _layer(program: Program, layer: Layer, after: After) -> After:
    units = layer.units or Units(output=Work("output", layer.number))
    attended = _both(program, layer.own_attention, units.core, units, after=project(program, layer, after))
    after = gathered(program, layer, program.compute(units.output, after=attended))
    if layer.gate is None:
        return after
    after = leave(program, layer, after)
    if layer.shared is not None:
        after = program.compute(layer.shared, after=after)
    chunk = layer.chunks[0]
    worked = _both(program, chunk.experts, units.experts, units, after=arrive(program, chunk, after))
    return settle(program, layer, come_back(program, chunk, worked))


def _both(program: Program, own: Work, near: Work | None, units: Units, *, after: After) -> list[int]:
    """The work of the device and that of the units, one after the other unless they go beside each other."""
    done = program.compute(own, after=after)
    return [done] if near is None else [done, program.beside(near, "pim", after=after if units.beside else done)]
