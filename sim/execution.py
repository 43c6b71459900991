"""Executing priced steps, by the vector executor or step by step through events."""

from __future__ import annotations

import numpy as np

from scenarios.schedule_specs import ScheduleSpec
from sim.durations import Duration, ExchangeTime, at_steps
from sim.events import execute_events
from sim.laws import LAWS
from sim.metrics import Execution
from sim.pricing import Prices
from sim.program import OpList
from sim.vector import Finished, execute


def executed(op_list: OpList, prices: Prices, schedule: ScheduleSpec) -> Execution:
    """All steps that the prices are of, by the executor that the schedule names."""
    durations = prices.durations(op_list)
    if schedule.executor == "vector":
        finished = execute(op_list, durations, law=LAWS[schedule.exchange.law], packet_s=prices.packet_s)
    else:
        finished = _step_by_step(op_list, durations, schedule.exchange.law, prices.packet_s)
    return Execution(op_list=op_list, durations=durations, finished=finished)


def _step_by_step(op_list: OpList, durations: list[Duration], law: str, packet_s: float) -> Finished:
    """The event executor on every step of a batch."""
    first = durations[0]
    n_steps = len(first.send_s if isinstance(first, ExchangeTime) else first)
    by_step = [[at_steps(duration, step) for duration in durations] for step in range(n_steps)]
    steps = [execute_events(op_list, one, law=law, packet_s=packet_s) for one in by_step]
    return Finished(
        end_s=np.stack([step.end_s for step in steps], axis=1),
        send_end_s=[np.stack(rows) for rows in zip(*(step.send_end_s for step in steps), strict=True)],
        unsent_s={op: np.stack([step.unsent_s[op] for step in steps]) for op in steps[0].unsent_s},
    )
