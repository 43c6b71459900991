"""How long the tasks of pipeline stages take: what a simulation of the stages gives, or a paper states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.durations import Seconds
from sim.pipelines.tasks import Closing, Job, Pass, Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Times of passes, each float64[step, part, microbatch] [s]; axes of length 1 stand for all.

    forward_s          a forward pass.
    backward_input_s   the gradients of its inputs; backward_weight_s: of its weights. A whole backward pass is both.
    overlapped_s       a forward pass and a whole backward pass that hide each other's communication, by the part and
                       the microbatch of the forward pass.
    transfer_s         between two neighbouring parts, there or back: float64[step, part, 1] of the first one.
    closing_s          what ends a step beyond its passes, sums of gradients and the update: float64[step, part, 1];
                       None where nothing does.
    """

    forward_s: Seconds
    backward_input_s: Seconds
    backward_weight_s: Seconds
    overlapped_s: Seconds
    transfer_s: Seconds
    closing_s: Seconds | None = None

    def of(self, job: Job) -> Seconds:
        """Duration of a job, float64[step, 1]: its device axis is that of the executors."""
        if isinstance(job, Transfer):
            return _at(self.transfer_s, Pass(job.part, 0))
        if isinstance(job, Closing):
            ends = np.zeros((1, 1, 1)) if self.closing_s is None else self.closing_s
            return np.asarray(np.sum([_at(ends, Pass(part, 0)) for part in job.parts], axis=0))
        if job.forward is not None and job.backward is not None:
            return _at(self.overlapped_s, job.forward)
        pairs = (
            (self.forward_s, job.forward),
            (self.backward_input_s, job.backward),
            (self.backward_weight_s, job.weights),
        )
        total: Seconds = np.sum([_at(times_s, work) for times_s, work in pairs if work is not None], axis=0)
        return total


def _at(times_s: Seconds, work: Pass) -> Seconds:
    _, n_parts, n_microbatches = times_s.shape
    part, microbatch = min(work.part, n_parts - 1), min(work.microbatch, n_microbatches - 1)
    found: Seconds = times_s[:, part, microbatch, None]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Times of the passes of one part of the model, each float64[batch] [s]: what a simulation of the part gives.

    overlapped_s  a forward and a whole backward pass that hide each other's communication.
    closing_s     what the last microbatch of a step takes beyond its passes; None where nothing is trained.
    """

    forward_s: Seconds
    backward_input_s: Seconds
    backward_weight_s: Seconds
    overlapped_s: Seconds
    closing_s: Seconds | None = None


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

    def drawn(times: Sequence[Seconds]) -> Seconds:
        by_part: Seconds = np.stack([one[batches] for one in times], axis=1)
        return by_part

    closing = [part.closing_s for part in parts if part.closing_s is not None]
    return StageTimes(
        forward_s=drawn([part.forward_s for part in parts]),
        backward_input_s=drawn([part.backward_input_s for part in parts]),
        backward_weight_s=drawn([part.backward_weight_s for part in parts]),
        overlapped_s=drawn([part.overlapped_s for part in parts]),
        transfer_s=np.array(transfer_s or [0.0], dtype=np.float64)[None, :, None],
        closing_s=drawn(closing)[..., -1:] if closing else None,
    )
