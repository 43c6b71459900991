"""The control plane: a SimPy process that replays steps; a step between two decisions costs one event."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np
import simpy
from numpy.typing import NDArray


def replay(step_times_s: Iterable[float], overhead_s: float) -> NDArray[np.float64]:
    """Times at which the steps begin and the last one ends, float64[step + 1]; each costs the host `overhead_s`."""
    env = simpy.Environment()
    begins_s = [0.0]
    env.process(_steps(env, step_times_s, overhead_s, begins_s))
    env.run()
    return np.array(begins_s)


def _steps(
    env: simpy.Environment, step_times_s: Iterable[float], overhead_s: float, begins_s: list[float]
) -> Generator[simpy.Event, None, None]:
    for step_time_s in step_times_s:
        yield env.timeout(step_time_s + overhead_s)
        begins_s.append(env.now)
