"""A ring of slots for layers of experts (SE-MoE, arXiv 2205.10034): what has worked makes room for a later layer."""

from __future__ import annotations

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import arrive, come_back
from sim.program import After, Program, Step


def ring(program: Program, step: Step) -> None:
    """Issue every layer in order; when its experts have worked, its slot takes the layer `slots` after it.

    Passes follow each other: at the start all slots but one are filled, and that one takes the last of them; the copies
    end with those that the next pass begins with.
    """
    queue = [layer.streamed for layer in step.layers if layer.streamed is not None]
    slots = queue[0].slots if queue else 0
    copied: dict[int, int] = {}
    previous: After = None
    place = 0

    def ask(number: int, after: After) -> None:
        page = queue[number % len(queue)].page
        if page is not None and number - slots + 1 < len(queue):
            copied[number] = program.beside(page, "to-device", after=after)

    if queue:
        ask(slots - 1, None)
    for layer in step.layers:
        previous = gated = leave(program, layer, attend(program, layer, previous))
        if layer.shared is not None:
            previous = program.compute(layer.shared, after=gated)
        if layer.streamed is None:
            continue
        chunk = layer.chunks[0]
        here = [copied[place]] if place in copied else []
        worked = program.compute(chunk.experts, after=[arrive(program, chunk, gated), *here])
        ask(place + slots, worked)
        back = come_back(program, chunk, worked)
        previous, place = settle(program, layer, [back] if layer.shared is None else [back, previous]), place + 1
    program.compute(step.head, after=previous)
