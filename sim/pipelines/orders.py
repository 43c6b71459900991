"""Orders of pipeline stages with one direction: GPipe, 1F1B, interleaved 1F1B, ZB1P."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

from scenarios.errors import ScenarioError
from sim.pipelines.tasks import Order, PipelineShape, Task, backward, backward_input, backward_weight, forward


def gpipe(shape: PipelineShape, stage: int) -> Order:
    """All forward passes, then all backward passes (Huang et al., arXiv 1811.06965)."""
    microbatches = range(shape.n_microbatches)
    return tuple(forward(stage, m) for m in microbatches) + tuple(backward(stage, m) for m in microbatches)


def one_forward_one_backward(shape: PipelineShape, stage: int) -> Order:
    """1F1B: as many forward passes as stages follow, then forward and backward in turn (arXiv 2104.04473)."""
    microbatches = range(shape.n_microbatches)
    ahead = shape.n_stages - 1 - stage
    return _in_turn([forward(stage, m) for m in microbatches], [backward(stage, m) for m in microbatches], ahead)


def interleaved(shape: PipelineShape, stage: int) -> Order:
    """1F1B over `chunks` parts of a stage, `n_stages` microbatches a part at a time (arXiv 2104.04473, section 2.2).

    Raises ScenarioError where the stages do not divide the microbatches.
    """
    stages, chunks, microbatches = shape.n_stages, shape.chunks, shape.n_microbatches
    if microbatches % stages:
        raise ScenarioError(
            f"pipeline interleaved: {microbatches} microbatches are not divisible by {stages} stages; give "
            f"{-(-microbatches // stages) * stages}, or pipeline 1f1b"
        )
    rounds = [range(first, first + stages) for first in range(0, microbatches, stages)]

    def passes(parts: range, make: Callable[[int, int], Task]) -> list[Task]:
        return [make(part, microbatch) for group in rounds for part in parts for microbatch in group]

    upwards = range(stage, stages * chunks, stages)
    ahead = 2 * (stages - 1 - stage) + (chunks - 1) * stages if chunks > 1 else stages - 1 - stage
    return _in_turn(passes(upwards, forward), passes(upwards[::-1], backward), ahead)


def zero_bubble_one(shape: PipelineShape, stage: int) -> Order:
    """ZB1P (ZB-H1): 1F1B with gradients of weights put off, on stage s by s microbatches (arXiv 2401.10241, 2.3).

    The gradients that a stage waits for leave earlier, and the weights' gradients fill the end; no stage holds
    activations of more microbatches than the first one of 1F1B does.
    """
    microbatches, order = range(shape.n_microbatches), list[Task]()
    inputs = [backward_input(stage, m) for m in microbatches]
    weights = [backward_weight(stage, m) for m in microbatches]
    due = 0
    for task in _in_turn([forward(stage, m) for m in microbatches], inputs, shape.n_stages - 1 - stage):
        order.append(task)
        if task.backward is not None and task.backward.microbatch >= stage:
            order.append(weights[due])
            due += 1
    return (*order, *weights[due:])


def _in_turn(forwards: list[Task], backwards: list[Task], ahead: int) -> Order:
    """`ahead` forward passes, then one of each in turn as long as there are both, then what is left."""
    pairs = zip_longest(forwards[ahead:], backwards)
    return (*forwards[:ahead], *(task for pair in pairs for task in pair if task is not None))
