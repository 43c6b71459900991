"""Where sums of gradients stand in the order of the ports that they share with the tokens of a backward pass.

Ports are first in, first out, so that the order is chosen before anything runs, and blind to durations. A gap is where
the next exchange of tokens waits for a computation: beside experts, after the results of a chunk have left, and beside
a layer without experts. What stands in a gap was ready before that computation, so that tokens wait only for what it
does not hide.

after       no gap: all sums when the backward pass is over.
overlapped  all that is ready stands before the next exchange: data-parallel buckets on the stream of the tokens.
priority    one piece in a gap (Lina, arXiv 2210.17223, section 4): tokens wait for one piece at most.
fill        one piece in a gap, of any of the gradients that are ready, as long as the ports would idle there (FSMoE,
            arXiv 2501.10714, section 5); how long is a matter of prices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from scenarios.schedule_specs import GradientOrder
from sim.program import Program, Work


@dataclass(slots=True)
class Gradients:
    """Sums whose gradients are there and that have not been issued: (piece, operation that it comes after)."""

    program: Program
    at_once: bool = False
    per_gap: int = 0
    waiting: deque[tuple[Work, int]] = field(default_factory=deque)
    issued: list[int] = field(default_factory=list)

    def ready(self, pieces: tuple[Work, ...], after: int) -> None:
        """Gradients are there after an operation."""
        self.waiting.extend((piece, after) for piece in pieces)
        if self.at_once:
            self.rest()

    def gap(self) -> None:
        """What comes next is a computation that the next exchange of tokens waits for."""
        self._issue(min(self.per_gap, len(self.waiting)))

    def rest(self) -> None:
        """Issue all that waits."""
        self._issue(len(self.waiting))

    def _issue(self, n_pieces: int) -> None:
        for _ in range(n_pieces):
            piece, after = self.waiting.popleft()
            self.issued.append(self.program.exchange(piece, after=after))


@dataclass(slots=True)
class Filling(Gradients):
    """In a gap a piece of any gradients that are ready, work `FILL` with its number; at the end what they leave."""

    def gap(self) -> None:
        """One piece, after the latest of the gradients."""
        if self.waiting:
            piece = Work(FILL, -1, len(self.issued))
            self.issued.append(self.program.exchange(piece, after=self.waiting[-1][1]))


FILL = "fill"
"""Kind of the pieces of order fill in gaps."""

ORDERS: dict[GradientOrder, Callable[[Program], Gradients]] = {
    "after": Gradients,
    "overlapped": lambda program: Gradients(program, at_once=True),
    "priority": lambda program: Gradients(program, per_gap=1),
    "fill": Filling,
}
