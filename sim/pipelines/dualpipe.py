"""DualPipe: microbatches from both ends, forward passes of one direction beside backward passes of the other."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from scenarios.errors import ScenarioError
from sim.pipelines.tasks import Order, Pass, PipelineShape, Task


def dualpipe(shape: PipelineShape, stage: int) -> Order:
    """The order of one stage (DeepSeek-V3, arXiv 2412.19437, section 3.2.1; repository deepseek-ai/DualPipe).

    Of `near` microbatches the stage is in the first half of the pipeline, of `far` in the second. Eight phases: fill,
    and while gradients come back put off those of weights; in the middle every forward hides a backward; then drain.
    Raises ScenarioError for an odd number of stages, or too few microbatches to fill both directions.
    """
    _check(shape)
    half, place = shape.n_stages // 2, min(stage, shape.n_stages - 1 - stage)
    outer, inner = half - place - 1, place + 1
    is_middle = outer == 0
    run = _Run.of(shape, stage)
    near, far = run.near, run.far
    for _ in range(2 * outer):
        run.forward(near)
    for _ in range(inner):
        run.forward(near)
        run.forward(far)
    for _ in range(outer):
        run.backward_input(far)
        run.weights()
        run.forward(far)
    for turn in range(shape.n_microbatches // 2 - shape.n_stages + inner):
        if turn == 0 and is_middle:  # nothing to hide yet, and the neighbour waits for both
            run.forward(near)
            run.backward(far)
        else:
            run.both(near, far)
        run.both(far, near)
    for _ in range(outer):
        run.backward(far)
        run.both(far, near)
    for turn in range(inner):  # in the second half of these, weights wait
        run.drain(far, put_off=turn > inner // 2 or (turn == inner // 2 and place % 2 == 1))
        run.drain(near, put_off=turn >= inner // 2)
    for _ in range(outer):
        run.weights()
        run.backward_input(near)
    for _ in range(inner):
        run.weights()
    return tuple(run.order)


def _check(shape: PipelineShape) -> None:
    stages, microbatches = shape.n_stages, shape.n_microbatches
    if stages % 2:
        raise ScenarioError(f"pipeline dualpipe has an even number of stages, not {stages}; give {stages + 1}")
    if microbatches % 2 or microbatches < 2 * stages:
        raise ScenarioError(
            f"pipeline dualpipe fills {stages} stages from both ends: {microbatches} microbatches are too few or odd; "
            f"give an even number from {2 * stages} on"
        )


@dataclass(slots=True)
class _Direction:
    """Microbatches of one direction on their way through the stage's part of it."""

    part: int
    first: int
    n_forward: int = 0
    n_backward: int = 0

    def next_forward(self) -> Pass:
        self.n_forward += 1
        return Pass(self.part, self.first + self.n_forward - 1)

    def next_backward(self) -> Pass:
        self.n_backward += 1
        return Pass(self.part, self.first + self.n_backward - 1)


@dataclass(slots=True)
class _Run:
    """The order of a stage as it is written; weights that were put off wait in `due`, first in, first out."""

    near: _Direction
    far: _Direction
    order: list[Task] = field(default_factory=list)
    due: deque[Pass] = field(default_factory=deque)

    @classmethod
    def of(cls, shape: PipelineShape, stage: int) -> _Run:
        directions = (_Direction(stage, 0), _Direction(shape.n_stages - 1 - stage, shape.n_microbatches // 2))
        return cls(*(directions if stage < shape.n_stages // 2 else directions[::-1]))

    def forward(self, way: _Direction) -> None:
        self.order.append(Task(forward=way.next_forward()))

    def backward(self, way: _Direction) -> None:
        work = way.next_backward()
        self.order.append(Task(backward=work, weights=work))

    def backward_input(self, way: _Direction) -> None:
        work = way.next_backward()
        self.order.append(Task(backward=work))
        self.due.append(work)

    def drain(self, way: _Direction, *, put_off: bool) -> None:
        (self.backward_input if put_off else self.backward)(way)

    def weights(self) -> None:
        self.order.append(Task(weights=self.due.popleft()))

    def both(self, ahead: _Direction, back: _Direction) -> None:
        """A forward pass of one direction beside a backward pass of the other."""
        self.backward(back)
        self.order[-1] = replace(self.order[-1], forward=ahead.next_forward())
