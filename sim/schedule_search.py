"""The best of several schedules for a scenario, each simulated on the same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scenarios.errors import MemoryInfeasible
from scenarios.schedule_specs import ScheduleSpec
from sim.describe import schedule_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a schedule reaches: mean time of its steps [s], and tokens/s of all devices."""

    step_time_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search tried, in the order of the scenario, and how fast each was; what does not fit in memory apart."""

    tried: tuple[ScheduleSpec, ...]
    speeds: tuple[Speed, ...]
    too_large: tuple[ScheduleSpec, ...] = ()

    @property
    def chosen(self) -> ScheduleSpec:
        """The schedule with most tokens/s; of equal ones the first."""
        rates = [speed.tokens_per_s for speed in self.speeds]
        return self.tried[rates.index(max(rates))]

    def gain_over(self, tokens_per_s: float) -> float:
        """Throughput of the chosen schedule over another one, minus one."""
        return max(speed.tokens_per_s for speed in self.speeds) / tokens_per_s - 1

    def as_json(self) -> dict[str, Any]:
        """Name of the choice, its gains, and all that was tried, for the result file."""
        return {
            "chosen": schedule_name(self.chosen),
            "gain_over_first": self.gain_over(self.speeds[0].tokens_per_s),
            "gain_over_worst": self.gain_over(min(speed.tokens_per_s for speed in self.speeds)),
            "tried": [
                {"name": schedule_name(one), "step_time_s": speed.step_time_s, "tokens_per_s": speed.tokens_per_s}
                for one, speed in zip(self.tried, self.speeds, strict=True)
            ],
            "too_large": [schedule_name(one) for one in self.too_large],
        }

    def sentence(self) -> str:
        """What was chosen and what it gains, for people."""
        first, gains = schedule_name(self.tried[0]), self.as_json()
        without = f"; {len(self.too_large)} more do not fit in memory" if self.too_large else ""
        return (
            f"Search: {gains['chosen']} is the best of {len(self.tried)} schedules{without}, "
            f"{gains['gain_over_first']:+.1%} tokens/s over the first ({first}) and "
            f"{gains['gain_over_worst']:+.1%} over the worst."
        )


def search(schedules: Sequence[ScheduleSpec], speed_of: Callable[[ScheduleSpec], Speed]) -> Found:
    """All schedules, simulated; what does not fit in memory is left out, unless nothing fits.

    Raises MemoryInfeasible of the last schedule where none fits; what else `speed_of` raises ends the search.
    """
    speeds: dict[int, Speed] = {}
    for place, schedule in enumerate(schedules):
        try:
            speeds[place] = speed_of(schedule)
        except MemoryInfeasible:
            if place == len(schedules) - 1 and not speeds:
                raise
    return Found(
        tried=tuple(schedules[place] for place in speeds),
        speeds=tuple(speeds.values()),
        too_large=tuple(one for place, one in enumerate(schedules) if place not in speeds),
    )
