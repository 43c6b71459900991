"""Experts come ahead of their layer (Janus, SIGCOMM 2023): where all are pulled they do not depend on routing."""

from __future__ import annotations

from sim.policies.around import leave, listed, settle
from sim.policies.attend import attend
from sim.policies.sequential import work_in_turn
from sim.program import After, Layer, Program, Step


def prefetch(program: Program, step: Step) -> None:
    """Issue every layer in order; experts of pulled layers are asked for one layer ahead, into one of two buffers."""
    queue = [layer for layer in step.layers if layer.gate is not None]
    arrived: dict[int, int] = {}
    freed: After = None
    _ask(program, queue, 0, arrived, after=None)
    place, previous = 0, freed
    for layer in step.layers:
        if layer.is_pulled:
            _ask(program, queue, place + 1, arrived, after=freed)
        previous = leave(program, layer, attend(program, layer, previous))
        if layer.gate is None:
            continue
        if layer.shared is not None:
            previous = program.compute(layer.shared, after=previous)
        if layer.is_pulled and layer.local is not None:
            freed = program.compute(layer.local, after=[arrived[place], *listed(previous)])
            previous = settle(program, layer, freed)
        else:
            previous = settle(program, layer, work_in_turn(program, layer, previous))
            _ask(program, queue, place + 1, arrived, after=freed)
        place += 1
    program.compute(step.head, after=previous)


def _ask(program: Program, queue: list[Layer], place: int, arrived: dict[int, int], *, after: After) -> None:
    """Fetch the experts of the MoE layer in that place, where it pulls them."""
    if place < len(queue) and queue[place].is_pulled and (fetch := queue[place].fetch) is not None:
        arrived[place] = program.exchange(fetch, after=after)
