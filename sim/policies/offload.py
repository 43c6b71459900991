"""Runs of several passes on one device: experts that may be on the host, layers streamed in, two microbatches at once.

Work is issued in the order in which `traces/capture/runs` does; a lane of its own copies, or computes on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.expert_cache import LayerUse
from sim.program import After, Lane, Program, Work

Uses = Sequence[Sequence[LayerUse]]


@dataclass(frozen=True, slots=True)
class Sides:
    """Lanes of copies and of the host's experts: one and the same where the host's core does the copying."""

    copies: Lane = "to-device"
    host: Lane = "host"


def offload(program: Program, uses: Uses, sides: Sides, *, shared: bool = False) -> None:
    """Passes with experts [pass][layer]: those on the device first, then those on their way, the host's last.

    After the gate, missed experts are copied or computed by the host beside what the device does; with a prefetch, the
    next layer's gate then says what to copy ahead.
    """
    arrival: dict[tuple[int, int], int] = {}
    previous: After = None
    for step, layers in enumerate(uses):
        previous = program.compute(Work("embed", step=step), after=previous)
        for number, use in enumerate(layers):
            previous = _offloaded_layer(program, (step, number), use, sides, arrival, after=previous)
            previous = _end_of_layer(program, (step, number), previous, shared)
        previous = program.compute(Work("head", step=step), after=previous)


def _offloaded_layer(
    program: Program,
    place: tuple[int, int],
    use: LayerUse,
    sides: Sides,
    arrival: dict[tuple[int, int], int],
    *,
    after: After,
) -> list[int]:
    step, number = place
    ready = _route(program, place, after)
    _copy(program, (step, number, number), use.copied, sides, arrival, after=ready)
    hosted = []
    if use.hosted and (sides.host != sides.copies or not use.copied):
        program.beside(Work("hand-over", number, -2, step), sides.host, after=ready)
    for e in use.hosted:
        hosted.append(program.beside(Work("host expert", number, e, step), sides.host, after=ready))
    if use.ahead is not None:
        predicted = program.compute(Work("predict", number, step=step), after=ready)
        _copy(program, (step, number, number + 1), use.ahead, sides, arrival, after=predicted)
    worked = [program.compute(Work("expert", number, e, step), after=ready) for e in use.resident]
    for e in (*use.coming, *use.copied):
        worked.append(program.compute(Work("expert", number, e, step), after=(ready, arrival.pop((number, e)))))
    return [*worked, *hosted]


def _route(program: Program, place: tuple[int, int], after: After) -> int:
    step, number = place
    attended = program.compute(Work("attention", number, step=step), after=after)
    gated = program.compute(Work("gate", number, step=step), after=attended)
    return program.compute(Work("sort", number, step=step), after=gated)


def _copy(
    program: Program,
    place: tuple[int, int, int],
    experts: Sequence[int],
    sides: Sides,
    arrival: dict[tuple[int, int], int],
    *,
    after: int,
) -> None:
    """Copies of experts to the last layer of `place` (step, where they are issued, for which layer)."""
    step, here, layer = place
    if experts:
        program.beside(Work("hand-over", here, layer, step), sides.copies, after=after)
    for e in experts:
        arrival[layer, e] = program.beside(Work("copy", layer, e, step), sides.copies, after=after)


def _end_of_layer(program: Program, place: tuple[int, int], after: After, shared: bool) -> int:
    step, number = place
    done = program.compute(Work("combine", number, step=step), after=after)
    if shared:
        done = program.compute(Work("shared", number, step=step), after=done)
    return program.compute(Work("add", number, step=step), after=done)


def streamed(program: Program, uses: Uses, sides: Sides, *, overlapped: bool, shared: bool = False) -> None:
    """Passes whose layers are copied whole, into one of two buffers: ahead of the layer before, or when needed."""
    previous: After = None
    for step, layers in enumerate(uses):
        copies: dict[int, int] = {}
        if overlapped:
            copies[0] = _copy_layer(program, step, 0, sides, previous)
        previous = program.compute(Work("embed", step=step), after=previous)
        for number, use in enumerate(layers):
            ready = gated = _gate(program, (step, number), previous)
            if not overlapped:
                copies[number] = _copy_layer(program, step, number, sides, gated)
            elif number + 1 < len(layers):
                copies[number + 1] = _copy_layer(program, step, number + 1, sides, gated)
            ready = program.compute(Work("sort", number, step=step), after=(gated, copies[number]))
            worked = [program.compute(Work("expert", number, e, step), after=ready) for e in use.resident]
            previous = _end_of_layer(program, (step, number), worked, shared)
        previous = program.compute(Work("head", step=step), after=previous)


def _gate(program: Program, place: tuple[int, int], after: After) -> int:
    step, number = place
    attended = program.compute(Work("attention", number, step=step), after=after)
    return program.compute(Work("gate", number, step=step), after=attended)


def _copy_layer(program: Program, step: int, number: int, sides: Sides, after: After) -> int:
    begun = program.beside(Work("hand-over", number, number, step), sides.copies, after=after)
    return program.beside(Work("layer copy", number, step=step), sides.copies, after=begun)


def microbatches(program: Program, uses: Uses, sides: Sides, *, overlapped: bool, shared: bool = False) -> None:
    """Two runs of passes, the second half of `uses` beside the first on the stream of the copies, or after it."""
    half = len(uses) // 2
    ends: list[int] = []
    if overlapped:
        begun = program.beside(Work("hand-over"), sides.copies, after=None)
        ends.append(_chain(program, range(half, len(uses)), uses, sides.copies, shared, after=begun))
    first = _chain(program, range(half), uses, "compute", shared, after=None)
    if not overlapped:
        first = _chain(program, range(half, len(uses)), uses, "compute", shared, after=first)
    program.compute(Work("join"), after=[first, *ends])


def _chain(program: Program, steps: range, uses: Uses, lane: Lane, shared: bool, *, after: After) -> int:
    """Passes one operation after the other on one lane; the last operation."""
    previous = after
    for step in steps:
        works = [Work("embed", step=step)]
        for number, use in enumerate(uses[step]):
            works += [Work(kind, number, step=step) for kind in ("attention", "gate", "sort")]
            works += [Work("expert", number, e, step) for e in use.resident]
            works += [Work(kind, number, step=step) for kind in ("combine", *(("shared",) if shared else ()), "add")]
        for work in [*works, Work("head", step=step)]:
            previous = program.beside(work, lane, after=previous)
    if not isinstance(previous, int):
        raise ValueError("a chain has at least one pass")
    return previous
