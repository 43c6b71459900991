"""What a pipeline stage does, and in which order: values that orders make and the pipeline executes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from scenarios.errors import DeadlockError, ScenarioError


class Pass(NamedTuple):
    """One microbatch through one part of the model, forward or backward."""

    part: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class Task:
    """What a stage does in one go; at least one pass.

    forward   a forward pass.
    backward  a backward pass; of the inputs alone where `weights` does not name it, too.
    weights   the gradients of the weights of a pass whose inputs have theirs already, or get them now.
    With both a forward and a backward pass, each hides the communication of the other.
    """

    forward: Pass | None = None
    backward: Pass | None = None
    weights: Pass | None = None

    @property
    def kind(self) -> str:
        """Name of the work."""
        return "forward-backward" if self.forward and self.backward else self.passes[0][0]

    @property
    def passes(self) -> tuple[tuple[str, Pass], ...]:
        """Passes with the names of their kinds: a forward pass first, a whole backward pass as one."""
        back = "backward" if self.weights is not None else "backward-input"
        named = (("forward", self.forward), (back, self.backward))
        found = tuple((kind, work) for kind, work in named if work is not None)
        return found or (("backward-weight", self.first),)

    @property
    def first(self) -> Pass:
        """A pass of the task: the forward one where there is one. Raises DeadlockError where it has none."""
        work = self.forward or self.backward or self.weights
        if work is None:
            raise DeadlockError("a task of a pipeline stage without a pass never ends")
        return work


@dataclass(frozen=True, slots=True)
class Transfer:
    """The result of a pass on its way between `part` and the next one, there or back."""

    part: int


@dataclass(frozen=True, slots=True)
class Closing:
    """What a stage does at the end of a step for all of its parts: sums of gradients, the update."""

    parts: tuple[int, ...]


Job = Task | Transfer | Closing


def forward(part: int, microbatch: int) -> Task:
    """A forward pass by itself."""
    return Task(forward=Pass(part, microbatch))


def backward(part: int, microbatch: int) -> Task:
    """A whole backward pass: gradients of inputs and weights."""
    return Task(backward=Pass(part, microbatch), weights=Pass(part, microbatch))


def backward_input(part: int, microbatch: int) -> Task:
    """The gradients of a pass's inputs, which the stage before waits for."""
    return Task(backward=Pass(part, microbatch))


def backward_weight(part: int, microbatch: int) -> Task:
    """The gradients of a pass's weights, which nothing waits for."""
    return Task(weights=Pass(part, microbatch))


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineShape:
    """Stages, and how many microbatches they have in a step.

    chunks         parts of the model that a stage holds (virtual stages), `n_stages` parts apart.
    bidirectional  the second half of the microbatches runs from the last stage to the first: stage s holds part s and
                   part n_stages - 1 - s.
    Raises ScenarioError where a number is below one.
    """

    n_stages: int
    n_microbatches: int
    chunks: int = 1
    bidirectional: bool = False

    def __post_init__(self) -> None:
        if min(self.n_stages, self.n_microbatches, self.chunks) < 1:
            raise ScenarioError(
                f"a pipeline of {self.n_stages} stages of {self.chunks} chunks with {self.n_microbatches} microbatches "
                "is impossible; give 1 or more of each"
            )

    @property
    def n_parts(self) -> int:
        """Parts that the model is cut into."""
        return self.n_stages * self.chunks

    def stage_of(self, work: Pass) -> int:
        """The stage that does a pass."""
        turned = self.bidirectional and work.microbatch >= self.n_microbatches // 2
        return self.n_stages - 1 - work.part if turned else work.part % self.n_stages

    def parts_of(self, stage: int) -> tuple[int, ...]:
        """Parts of the model whose weights a stage holds."""
        own = tuple(range(stage, self.n_parts, self.n_stages))
        return (*own, self.n_stages - 1 - stage) if self.bidirectional else own


Order = tuple[Task, ...]
"""What one stage does, in order."""
OrderOf = Callable[[PipelineShape, int], Order]
"""The order of a stage."""


def forward_only(order: Order) -> Order:
    """The forward passes of an order: what is left of it where nothing is trained."""
    return tuple(Task(forward=task.forward) for task in order if task.forward is not None)


def activations_in_flight(order: Order) -> int:
    """Most passes whose activations a stage holds at once: from the forward pass until the weights' gradients."""
    held = most = 0
    for task in order:
        held += task.forward is not None
        most = max(most, held)
        held -= task.weights is not None
    return most
