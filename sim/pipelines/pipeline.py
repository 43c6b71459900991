"""Stages composed: the orders of all stages as one stream program, a lane a stage and a lane each way between two."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scenarios.errors import DeadlockError
from sim.durations import Seconds, at_steps
from sim.events import execute_events
from sim.pipelines.tasks import Closing, Job, Order, Pass, PipelineShape, Task, Transfer
from sim.pipelines.times import StageTimes
from sim.program import OpList, Program, StageLane, Work, list_ops
from sim.vector import Finished, execute


@dataclass(slots=True)
class PipelineProgram:
    """Orders of stages, issued: `jobs[i]` is what operation i does."""

    shape: PipelineShape
    program: Program
    jobs: list[Job]
    forwarded: dict[Pass, int]
    returned: dict[Pass, int]
    """Operations after which the next stage can go on with a pass, forwards and backwards."""

    def awaited(self, task: Task) -> list[tuple[dict[Pass, int], Pass]]:
        """What a task needs of other stages."""
        needs: list[tuple[dict[Pass, int], Pass]] = []
        if task.forward is not None and task.forward.part > 0:
            needs.append((self.forwarded, Pass(task.forward.part - 1, task.forward.microbatch)))
        if task.backward is not None:
            last = task.backward.part == self.shape.n_parts - 1
            done = self.forwarded if last else self.returned
            needs.append((done, task.backward if last else Pass(task.backward.part + 1, task.backward.microbatch)))
        return needs

    def is_ready(self, task: Task) -> bool:
        """Whether all that the task needs has been issued."""
        return all(work in done for done, work in self.awaited(task))

    def issue(self, stage: int, task: Task) -> None:
        """Put a task on its stage's lane, and its results on their way."""
        after = [done[work] for done, work in self.awaited(task)]
        named = Work(task.kind, layer=task.first.part, chunk=task.first.microbatch)
        end = self.program.beside(named, StageLane(f"stage {stage}"), after=after)
        self.jobs.append(task)
        if task.forward is not None:
            self.forwarded[task.forward] = self._sent(task.forward, end, towards=1)
        if task.backward is not None:
            self.returned[task.backward] = self._sent(task.backward, end, towards=-1)

    def _sent(self, work: Pass, end: int, *, towards: int) -> int:
        """The operation that ends when the result of a pass is where it is needed."""
        target = Pass(work.part + towards, work.microbatch)
        if not 0 <= target.part < self.shape.n_parts:
            return end
        here, there = self.shape.stage_of(work), self.shape.stage_of(target)
        if here == there:
            return end
        lane = StageLane(f"stage {here} to {there}")
        self.jobs.append(Transfer(min(work.part, target.part)))
        return self.program.beside(Work("transfer", work.part, work.microbatch), lane, after=end)


def issue_orders(shape: PipelineShape, orders: Sequence[Order], *, closes: bool = False) -> PipelineProgram:
    """The program of all stages' orders; results leave at once, beside what a stage does next.

    closes  each stage ends the step with more than its passes.

    Raises DeadlockError where stages wait for each other for ever.
    """
    issued = PipelineProgram(shape, Program(), [], {}, {})
    left = [deque(order) for order in orders]
    while any(left):
        before = len(issued.jobs)
        for stage, tasks in enumerate(left):
            while tasks and issued.is_ready(tasks[0]):
                issued.issue(stage, tasks.popleft())
        if len(issued.jobs) == before:
            stage = next(stage for stage, tasks in enumerate(left) if tasks)
            raise DeadlockError(f"stage {stage} of the pipeline waits for ever before {left[stage][0]}")
    for stage in range(shape.n_stages if closes else 0):
        issued.program.beside(Work("update"), StageLane(f"stage {stage}"), after=None)
        issued.jobs.append(Closing(shape.parts_of(stage)))
    return issued


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBar:
    """What a stage does from `begin_s` to `end_s` of a step; a forward pass first where there are two.

    passes  (kind, microbatch, whether it entered at the last stage).
    """

    stage: int
    passes: tuple[tuple[str, int, bool], ...]
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipelined:
    """An executed pipeline; arrays float64[step, 1] in `finished` and `durations`, `jobs` as issued."""

    shape: PipelineShape
    jobs: Sequence[Job]
    op_list: OpList
    durations: Sequence[Seconds]
    finished: Finished

    @property
    def step_times_s(self) -> Seconds:
        """Time until the last stage is done, float64[step]."""
        ends: Seconds = self.finished.end_s.max(axis=(0, -1))
        return ends

    @property
    def busy_s(self) -> Seconds:
        """Time in which each stage works, float64[step, stage]."""
        busy_s: Seconds = np.zeros((len(self.step_times_s), self.shape.n_stages))
        stage_of: dict[str, int] = {f"stage {stage}": stage for stage in range(self.shape.n_stages)}
        for op, duration in zip(self.op_list.ops, self.durations, strict=True):
            if (stage := stage_of.get(op.lanes[0])) is not None:
                busy_s[:, stage] += duration[:, 0]
        return busy_s

    @property
    def closing_s(self) -> Seconds:
        """Time in which each stage ends the step, float64[step, stage]; part of `busy_s`."""
        ends = [d for job, d in zip(self.jobs, self.durations, strict=True) if isinstance(job, Closing)]
        return np.concatenate(ends, axis=1) if ends else np.zeros((len(self.step_times_s), self.shape.n_stages))

    @property
    def bubble_s(self) -> Seconds:
        """Time in which each stage waits, float64[step, stage]."""
        waits_s: Seconds = self.step_times_s[:, None] - self.busy_s
        return waits_s

    def bars(self, step: int = 0) -> tuple[StageBar, ...]:
        """What the stages do in one step, without transfers."""
        found = []
        stage_of: dict[str, int] = {f"stage {stage}": stage for stage in range(self.shape.n_stages)}
        for index, (job, op) in enumerate(zip(self.jobs, self.op_list.ops, strict=True)):
            if isinstance(job, Transfer):
                continue
            passes: tuple[tuple[str, int, bool], ...] = (("update", -1, False),)
            if isinstance(job, Task):
                passes = tuple((kind, one.microbatch, self._is_turned(one)) for kind, one in job.passes)
            end_s = float(self.finished.end_s[index, step, 0])
            begin_s = end_s - float(self.durations[index][step, 0])
            found.append(StageBar(stage=stage_of[op.lanes[0]], passes=passes, begin_s=begin_s, end_s=end_s))
        return tuple(found)

    def _is_turned(self, work: Pass) -> bool:
        return self.shape.bidirectional and work.microbatch >= self.shape.n_microbatches // 2


def run_pipeline(
    shape: PipelineShape, orders: Sequence[Order], times: StageTimes, executor: str = "vector"
) -> Pipelined:
    """The orders of all stages, executed. Raises DeadlockError where stages wait for each other for ever."""
    issued = issue_orders(shape, orders, closes=times.closing_s is not None)
    op_list = list_ops(issued.program.ops)
    durations = [times.of(job) for job in issued.jobs]
    n_steps = max(len(duration) for duration in durations)
    durations = [np.broadcast_to(duration, (n_steps, 1)) for duration in durations]
    if executor == "vector":
        finished = execute(op_list, durations)
    else:
        steps = [execute_events(op_list, [at_steps(d, step) for d in durations]) for step in range(n_steps)]
        ends = np.stack([step.end_s for step in steps], axis=1)
        finished = Finished(end_s=ends, send_end_s=list(ends))
    return Pipelined(shape=shape, jobs=issued.jobs, op_list=op_list, durations=durations, finished=finished)
