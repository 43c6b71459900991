"""Experts that live in the host's memory (`memory.offload`): copies and the host work beside what the device has."""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.around import leave, settle
from sim.policies.attend import attend
from sim.policies.travel import arrive, come_back
from sim.program import After, Program, Step, Stored, Work


def cached(program: Program, step: Step) -> None:
    """Issue every layer in order; after its gate missed experts are copied or left to the host, then those ahead asked.

    Copies of a device stand in one queue, so that a missed expert waits for those that were asked for before it; or
    those ahead let it pass, and once the gate has spoken that goes for those of them that it named.
    """
    queue = [layer.stored for layer in step.layers if layer.stored is not None]
    ahead: dict[Work, int] = {}
    late: list[int] = []
    previous: After = None
    place = 0
    _ask_all(program, queue[: queue[0].lead] if queue else [], ahead, after=None)
    for layer in step.layers:
        previous = gated = leave(program, layer, attend(program, layer, previous))
        if layer.stored is None:
            continue
        stored, chunk = layer.stored, layer.chunks[0]
        here = arrive(program, chunk, gated)
        upcoming = queue[place + stored.lead : place + stored.lead + 1]
        if stored.rest is not None:
            _ask_all(program, upcoming, ahead, after=gated)
            _take_rest(program, stored, ahead, here)
        loads = _load(program, stored, here)
        ready = _read(program, stored.read_hosted, here)
        if stored.rest is None:
            _ask_all(program, upcoming, ahead, after=gated)
        hosted = [] if stored.hosted is None else [program.beside(stored.hosted, "host", after=ready)]
        deferred = [] if stored.deferred is None else [program.beside(stored.deferred, "host", after=ready)]
        if layer.shared is not None:
            program.compute(layer.shared, after=gated)
        computed = [program.compute(stored.resident, after=here)]
        if stored.ahead is not None and stored.coming is not None:
            computed.append(program.compute(stored.coming, after=[here, ahead[stored.ahead]]))
        computed += [program.compute(worked, after=load) for load, (_, worked) in zip(loads, stored.loads, strict=True)]
        back = come_back(program, chunk, [*computed, *hosted, *late])
        previous, late, place = settle(program, layer, back), deferred, place + 1
    program.compute(step.head, after=[*late, *([previous] if isinstance(previous, int) else previous or [])])


def _load(program: Program, stored: Stored, here: After) -> list[int]:
    """Copy missed experts, piece by piece, from the drive where they are there."""
    reads = stored.reads or (None,) * len(stored.loads)
    arrived = [_read(program, read, here) for read in reads]
    return [program.beside(load, "to-device", after=at) for (load, _), at in zip(stored.loads, arrived, strict=True)]


def _take_rest(program: Program, stored: Stored, ahead: dict[Work, int], here: After) -> None:
    """Give up what is left of copies ahead that nobody uses, where they are, and await that of the others."""
    for drop, work in zip(stored.drop, stored.astray, strict=False):
        program.rest(drop, ahead[work], after=here, drops=True)
    if stored.rest is not None and stored.ahead is not None:
        ahead[stored.ahead] = program.rest(stored.rest, ahead[stored.ahead], after=here)


def _read(program: Program, work: Work | None, after: After) -> After:
    """What follows a read from the host's drive, where there is one, comes after that."""
    return after if work is None else program.beside(work, "from-ssd", after=after)


def _ask_all(program: Program, layers: Sequence[Stored], ahead: dict[Work, int], *, after: After) -> None:
    """Copy what a prefetch expects of some layers, in its order; which of them go astray nobody can tell yet."""
    for stored in layers:
        if stored.ahead is None:
            continue
        ready = _read(program, stored.read_ahead, after)
        if stored.rest is None:
            ahead[stored.ahead] = program.beside(stored.ahead, "to-device", after=ready)
            continue
        for work in (*stored.astray[:1], stored.ahead, *stored.astray[1:]):
            ahead[work] = program.later(work, after=ready)
