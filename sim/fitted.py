"""Steps of a setting made of other sequences than its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.setting import Setting
from sim.steps import composed
from traces.batches import Batches


def steps_of(setting: Setting, sequences: NDArray[np.int64], n_steps: int, rng: np.random.Generator) -> Batches:
    """Steps of the setting's workload made of `sequences` alone."""
    return composed(setting.trace, sequences, setting.workload, (n_steps, setting.cluster.n_devices), rng)
