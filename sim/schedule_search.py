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
class Speed:
    """What a schedule reaches: mean time of its steps [s], and tokens/s of all devices."""

    step_time_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A schedule with its speed, or with the reason why it does not fit in memory."""

    schedule: ScheduleSpec
    speed: Speed | None = None
    infeasible: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Name, and speed or reason."""
        found: dict[str, Any] = {"name": schedule_name(self.schedule)}
        if self.speed is None:
            return found | {"step_time_s": None, "tokens_per_s": None, "infeasible": self.infeasible}
        return found | {"step_time_s": self.speed.step_time_s, "tokens_per_s": self.speed.tokens_per_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search tried, in the order of the scenario, and the schedule with most tokens/s of those that fit."""

    tried: tuple[Tried, ...]
    chosen: ScheduleSpec
    speed: Speed

    def gain_over(self, tokens_per_s: float) -> float:
        """Throughput of the chosen schedule over another one, minus one."""
        return self.speed.tokens_per_s / tokens_per_s - 1

    def as_json(self) -> dict[str, Any]:
        """Name of the choice, its gains over the first and the worst that fit, and all that was tried."""
        rates = [one.speed.tokens_per_s for one in self.tried if one.speed is not None]
        return {
            "chosen": schedule_name(self.chosen),
            "gain_over_first": self.gain_over(rates[0]),
            "gain_over_worst": self.gain_over(min(rates)),
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
        left_out = [one for one in self.tried if one.infeasible]
        if not left_out:
            return text
        names = ", ".join(schedule_name(one.schedule) for one in left_out)
        return f"{text} Not feasible: {names} (the first: {left_out[0].infeasible})."


def search(schedules: Sequence[ScheduleSpec], timed: Callable[[ScheduleSpec], tuple[Speed, T]]) -> tuple[Found, T]:
    """What was found, and what `timed` gave beside the speed of the best; of equal ones the first is best.

    Raises MemoryInfeasible where no schedule fits; what else `timed` raises ends the search.
    """
    tried: list[Tried] = []
    best: tuple[Speed, ScheduleSpec, T] | None = None
    failure: MemoryInfeasible | None = None
    for schedule in schedules:
        try:
            speed, outcome = timed(schedule)
        except MemoryInfeasible as error:
            failure = failure or error
            tried.append(Tried(schedule=schedule, infeasible=str(error)))
            continue
        tried.append(Tried(schedule=schedule, speed=speed))
        if best is None or speed.tokens_per_s > best[0].tokens_per_s:
            best = speed, schedule, outcome
    if best is None:
        raise failure or ValueError("a search needs a schedule")
    return Found(tried=tuple(tried), chosen=best[1], speed=best[0]), best[2]
