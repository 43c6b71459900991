"""The best of several schedules for a scenario, each simulated on the same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from scenarios.errors import MemoryInfeasible
from scenarios.schedule_specs import ScheduleSpec
from sim.describe import schedule_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A schedule with its mean step time [s], or with the reason why it does not fit in memory."""

    schedule: ScheduleSpec
    step_time_s: float | None = None
    infeasible: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Name, and time or reason."""
        found: dict[str, Any] = {"name": schedule_name(self.schedule), "step_time_s": self.step_time_s}
        return found if self.infeasible is None else {**found, "infeasible": self.infeasible}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search tried, in the order of the scenario, and the shortest mean step of the schedules that fit [s]."""

    tried: tuple[Tried, ...]
    chosen: ScheduleSpec
    step_time_s: float

    def gain_over(self, step_time_s: float) -> float:
        """Throughput of the chosen schedule over that of one with the given step time, minus one."""
        return step_time_s / self.step_time_s - 1

    def as_json(self) -> dict[str, Any]:
        """Name of the choice, its gains over the first and the worst that fit, and all that was tried."""
        times_s = [one.step_time_s for one in self.tried if one.step_time_s is not None]
        return {
            "chosen": schedule_name(self.chosen),
            "gain_over_first": self.gain_over(times_s[0]),
            "gain_over_worst": self.gain_over(max(times_s)),
            "tried": [one.as_json() for one in self.tried],
        }

    def sentence(self) -> str:
        """What was chosen, what it gains and what did not fit, for people."""
        fitting = [one for one in self.tried if one.infeasible is None]
        first, gains = schedule_name(fitting[0].schedule), self.as_json()
        text = (
            f"Search: {gains['chosen']} is the best of {len(fitting)} schedules, "
            f"{gains['gain_over_first']:+.1%} tokens/s over the first ({first}) and "
            f"{gains['gain_over_worst']:+.1%} over the worst."
        )
        left_out = [f"{schedule_name(one.schedule)}: {one.infeasible}" for one in self.tried if one.infeasible]
        return f"{text} Not feasible: {'; '.join(left_out)}." if left_out else text


def search(schedules: Sequence[ScheduleSpec], timed: Callable[[ScheduleSpec], tuple[float, T]]) -> tuple[Found, T]:
    """What was found, and what `timed` gave beside the mean step time [s] of the best; of equal ones the first is best.

    Raises MemoryInfeasible where no schedule fits; what else `timed` raises ends the search.
    """
    tried: list[Tried] = []
    best: tuple[float, ScheduleSpec, T] | None = None
    failure: MemoryInfeasible | None = None
    for schedule in schedules:
        try:
            step_time_s, outcome = timed(schedule)
        except MemoryInfeasible as error:
            failure = failure or error
            tried.append(Tried(schedule=schedule, infeasible=str(error)))
            continue
        tried.append(Tried(schedule=schedule, step_time_s=step_time_s))
        if best is None or step_time_s < best[0]:
            best = step_time_s, schedule, outcome
    if best is None:
        raise failure or ValueError("a search needs a schedule")
    return Found(tried=tuple(tried), chosen=best[1], step_time_s=best[0]), best[2]
