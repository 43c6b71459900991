"""Streams of random numbers: one for each use of a scenario's seed, so that no two uses draw the same numbers."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """What random numbers of a scenario's seed are for; a number is never given away again."""

    JUDGED_STEPS = 1
    FIT_STEPS = 2
    PROMPTS = 3
    REQUESTS = 4
    SWEEP_POINTS = 5
    REQUEST_ROUTES = 6
    EPLB_FOLDS = 7
    EPLB_STEPS = 8


def generator(seed: int, use: Use, *more: int) -> np.random.Generator:
    """The stream of one use, and of one of its parts where `more` says which."""
    return np.random.default_rng([seed, use, *more])
