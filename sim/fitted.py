"""Steps of a setting made of other sequences than its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.setting import Setting
from traces.batches import Batches, compose_batches


def steps_of(setting: Setting, sequences: NDArray[np.int64], n_steps: int, rng: np.random.Generator) -> Batches:
    """Steps of the setting's workload made of `sequences` alone."""
    workload = setting.workload
    return compose_batches(
        setting.trace,
        sequences,
        phase=workload.phase,
        shape=(n_steps, setting.layout.n_devices, workload.tokens_per_device),
        context_tokens=workload.context_tokens,
        rng=rng,
    )
