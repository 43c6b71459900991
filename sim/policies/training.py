"""A training step: forward, backward in reverse with the sums of gradients in one of their orders, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from scenarios.errors import DeadlockError
from scenarios.schedule_specs import GradientOrder, OverlapName
from sim.policies.around import listed
from sim.policies.chunked import backward as chunked_backward
from sim.policies.chunked import forward as chunked_forward
from sim.policies.gradients import ORDERS, Gradients
from sim.policies.sequential import backward as sequential_backward
from sim.policies.sequential import forward as sequential_forward
from sim.program import After, BackwardLayer, Layer, Policy, Program, Step, Work

Forward = Callable[[Program, Layer, After], After]
Backward = Callable[[Program, BackwardLayer, After, Gradients], After]


def train(
    program: Program, step: Step, *, forward: Forward, backward: Backward, order: Callable[[Program], Gradients]
) -> None:
    """Issue both passes layer by layer, then what is left of the sums, and the update."""
    training = step.training
    if training is None:
        raise DeadlockError("a step without a backward pass cannot train")
    gradients = order(program)
    weights = _Weights(program, [layer.weights for layer in (*step.layers, *(one.works for one in training.layers))])
    after: After = None
    for layer in step.layers:
        after = forward(program, layer, weights.with_next(after))
    after = program.compute(training.head, after=program.compute(step.head, after=after))
    gradients.ready(training.head_sums, after)
    for back in training.layers:
        after = weights.with_next(after)
        if back.again is not None:
            gradients.gap()
            after = [*listed(after), *listed(forward(program, back.again, after))]
        after = backward(program, back, after, gradients)
    gradients.ready(training.embedding_sums, listed(after)[-1])
    gradients.rest()
    updated = program.compute(training.update, after=[*listed(after), *gradients.issued])
    if training.refresh is not None:
        program.exchange(training.refresh, after=updated)


@dataclass(slots=True)
class _Weights:
    """Weights that are gathered for a layer and dropped after it, in the order of use; None: held all the time."""

    program: Program
    works: Sequence[Work | None]
    place: int = 0
    ahead: list[int] = field(default_factory=list)

    def with_next(self, after: After) -> After:
        """What the next layer comes after: its weights, too. Those of the layer that follows are asked for."""
        here = self.ahead if self.place else self._asked(after)
        self.place += 1
        self.ahead = self._asked(after)
        return [*listed(after), *here] if here else after

    def _asked(self, after: After) -> list[int]:
        work = self.works[self.place] if self.place < len(self.works) else None
        return [] if work is None else [self.program.exchange(work, after=after)]


OVERLAPS: dict[OverlapName, tuple[Forward, Backward]] = {
    "none": (sequential_forward, sequential_backward),
    "chunked": (chunked_forward, chunked_backward),
}
"""Forward and backward pass of the overlaps that can train."""

TRAINING: dict[tuple[OverlapName, GradientOrder], Policy] = {
    (overlap, order): partial(train, forward=forward, backward=backward, order=gradients)
    for overlap, (forward, backward) in OVERLAPS.items()
    for order, gradients in ORDERS.items()
}
