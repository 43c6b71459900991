"""The sequences that plans are fitted on, and steps made of some of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.setting import Setting
from traces.batches import Batches, compose_batches
from traces.split import split_sequences


def fitted_sequences(setting: Setting, seed: int) -> NDArray[np.int64]:
    """The sequences that plans are fitted on, as `sim.setting.make_setting` draws them."""
    split = setting.workload.split
    fit, judged = split_sequences(setting.trace, split.fit, split.evaluate, seed)
    return fit if len(fit) else judged


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
