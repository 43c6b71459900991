"""How long the tasks of pipeline stages take: what a simulation of the stages gives, or a paper states."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Times of the passes of one part of the model, each float64[batch] [s]: what a simulation of the part gives.

    overlapped_s  a forward and a whole backward pass that hide each other's communication.
    """

    forward_s: Seconds
    backward_input_s: Seconds
    backward_weight_s: Seconds
    overlapped_s: Seconds


def forward_passes(forward_s: Seconds) -> PassTimes:
    """Passes of a part that is not trained."""
    none = np.zeros_like(forward_s)
    return PassTimes(forward_s=forward_s, backward_input_s=none, backward_weight_s=none, overlapped_s=none)


def stage_times(parts: Sequence[PassTimes], n_microbatches: int, transfer_s: Sequence[float]) -> StageTimes:
    """Times of steps whose microbatches are the simulated batches in turn; as many steps as these fill, at least one.

    transfer_s  between each part and the next.
    """
    n_batches = len(parts[0].forward_s)
    n_steps = max(1, n_batches // n_microbatches)
    batches = np.arange(n_steps * n_microbatches).reshape(n_steps, n_microbatches) % n_batches

    def drawn(name: str) -> Seconds:
        by_part: Seconds = np.stack([getattr(part, name)[batches] for part in parts], axis=1)
        return by_part

    return StageTimes(
        forward_s=drawn("forward_s"),
        backward_input_s=drawn("backward_input_s"),
        backward_weight_s=drawn("backward_weight_s"),
        overlapped_s=drawn("overlapped_s"),
        transfer_s=np.array(transfer_s or [0.0], dtype=np.float64)[None, :, None],
    )
