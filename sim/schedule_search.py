"""The best of several schedules for a scenario, each simulated on the same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scenarios.schedule_specs import ScheduleSpec
from sim.describe import schedule_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search tried: schedules and their mean step times [s], in the order of the scenario."""

    tried: tuple[ScheduleSpec, ...]
    step_times_s: tuple[float, ...]

    @property
    def chosen(self) -> ScheduleSpec:
        """The schedule with the shortest mean step; of equal ones the first."""
        return self.tried[self.step_times_s.index(min(self.step_times_s))]

    def gain_over(self, step_time_s: float) -> float:
        """Throughput of the chosen schedule over that of one with the given step time, minus one."""
        return step_time_s / min(self.step_times_s) - 1

    def as_json(self) -> dict[str, Any]:
        """Name of the choice, its gains, and all that was tried, for the result file."""
        return {
            "chosen": schedule_name(self.chosen),
            "gain_over_first": self.gain_over(self.step_times_s[0]),
            "gain_over_worst": self.gain_over(max(self.step_times_s)),
            "tried": [
                {"name": schedule_name(one), "step_time_s": time_s}
                for one, time_s in zip(self.tried, self.step_times_s, strict=True)
            ],
        }

    def sentence(self) -> str:
        """What was chosen and what it gains, for people."""
        first, gains = schedule_name(self.tried[0]), self.as_json()
        return (
            f"Search: {gains['chosen']} is the best of {len(self.tried)} schedules, "
            f"{gains['gain_over_first']:+.1%} tokens/s over the first ({first}) and "
            f"{gains['gain_over_worst']:+.1%} over the worst."
        )


def search(schedules: Sequence[ScheduleSpec], step_time_s: Callable[[ScheduleSpec], float]) -> Found:
    """All schedules, simulated; what `step_time_s` raises ends the search."""
    return Found(tried=tuple(schedules), step_times_s=tuple(step_time_s(schedule) for schedule in schedules))
