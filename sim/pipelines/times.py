"""How long the tasks of pipeline stages take: what a simulation of the stages gives, or a paper states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.durations import Seconds
from sim.pipelines.tasks import Pass, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Times of passes, each float64[step, part, microbatch] [s]; axes of length 1 stand for all.

    forward_s          a forward pass.
    backward_input_s   the gradients of its inputs; backward_weight_s: of its weights. A whole backward pass is both.
    overlapped_s       a forward pass and a whole backward pass that hide each other's communication, by the part and
                       the microbatch of the forward pass.
    transfer_s         between two neighbouring parts, there or back: float64[step, part, 1] of the first one.
    """

    forward_s: Seconds
    backward_input_s: Seconds
    backward_weight_s: Seconds
    overlapped_s: Seconds
    transfer_s: Seconds

    def of(self, task: Task) -> Seconds:
        """Duration of a task, float64[step, 1]: its device axis is that of the executors."""
        if task.forward is not None and task.backward is not None:
            return _at(self.overlapped_s, task.forward)
        pairs = (
            (self.forward_s, task.forward),
            (self.backward_input_s, task.backward),
            (self.backward_weight_s, task.weights),
        )
        total: Seconds = np.sum([_at(times_s, work) for times_s, work in pairs if work is not None], axis=0)
        return total

    def between(self, part: int) -> Seconds:
        """Duration of a transfer between `part` and the next one, float64[step, 1]."""
        return _at(self.transfer_s, Pass(part, 0))


def _at(times_s: Seconds, work: Pass) -> Seconds:
    _, n_parts, n_microbatches = times_s.shape
    part, microbatch = min(work.part, n_parts - 1), min(work.microbatch, n_microbatches - 1)
    found: Seconds = times_s[:, part, microbatch, None]
    return found
