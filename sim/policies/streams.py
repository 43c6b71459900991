"""What schedules of streamed weights share: works of a microbatch in a layer, in their order, on four lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.program import After, Program, Step, Streamed, Work

Slot = tuple[int, int]
"""(layer, microbatch) of a pass."""


def slots_of(step: Step) -> list[Slot]:
    """All layers of the pass, and in each layer all microbatches."""
    return [(layer, part) for layer in range(len(step.layers)) for part in range(len(step.microbatches))]


def works_of(step: Step, slot: Slot) -> Streamed:
    """The works of a microbatch in a layer; passes follow each other, so that layers begin again after the last."""
    layer, part = slot
    microbatch = step.microbatches[part]
    return microbatch.layers[layer % len(step.layers)].streamed or Streamed()


def begin(program: Program, works: Streamed, after: After) -> list[int]:
    """What the device computes before attention, and the copy of what the host needs for it."""
    ends = in_turn(program, works.before, after)
    return ends if works.queries is None else [program.beside(works.queries, "to-host", after=ends)]


def attend(program: Program, works: Streamed, after: After) -> list[int]:
    """Attention on the host; what it would come after where the device has it among its own works."""
    return listed(after) if works.attended is None else [program.beside(works.attended, "host", after=after)]


def finish(program: Program, step: Step, slot: Slot, after: After) -> list[int]:
    """What the device computes after attention; after the last layer the head, too."""
    works, last = works_of(step, slot), slot[0] == len(step.layers) - 1
    return in_turn(program, (*works.after, step.microbatches[slot[1]].head) if last else works.after, after)


@dataclass(slots=True)
class Weights:
    """Copies of every layer's weights, by number of the layer: `early` those of attention, `all` of the layer."""

    program: Program
    step: Step
    early: dict[int, list[int]] = field(default_factory=dict)
    all: dict[int, list[int]] = field(default_factory=dict)

    def ask(self, slot: Slot, after: After) -> None:
        """Issue what comes with this microbatch of a layer: weights of attention, then its page of the others."""
        works, layer = works_of(self.step, slot), slot[0]
        if works.early is not None:
            self.early[layer] = [self.program.beside(works.early, "to-device", after=after)]
        pages = [] if works.page is None else [self.program.beside(works.page, "to-device", after=after)]
        self.all[layer] = [*self.all.get(layer, self.early.get(layer, [])), *pages]

    def before(self, layer: int) -> list[int]:
        """Copies that a layer's projections wait for."""
        return self.early.get(layer, [])

    def of(self, layer: int) -> list[int]:
        """Copies that the rest of a layer waits for."""
        return self.all.get(layer, [])


def bring(program: Program, work: Work | None, after: After) -> list[int]:
    """A copy to the device, if there is one; otherwise what it would come after."""
    return listed(after) if work is None else [program.beside(work, "to-device", after=after)]


def in_turn(program: Program, works: Sequence[Work], after: After) -> list[int]:
    """Computed one after the other; the last one, or what they come after where there are none."""
    ends = listed(after)
    for work in works:
        ends = [program.compute(work, after=ends)]
    return ends


def listed(after: After) -> list[int]:
    """The operations of `after`."""
    return [] if after is None else [after] if isinstance(after, int) else list(after)
