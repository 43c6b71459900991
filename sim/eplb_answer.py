"""Will EPLB help here? A prediction from the fitted part alone, with its noise, and a simulation that checks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from placement.auto import least_redundant
from scenarios.errors import TraceError
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ScheduleSpec
from scenarios.seeds import Use, generator
from sim import metrics as measure
from sim.fitted import steps_of
from sim.metrics import Execution
from sim.priced_steps import execute_schedule
from sim.session import reduced, solve_placement
from sim.setting import Setting, sequence_parts
from traces.split import select_sequences
from traces.stats import expert_loads

FOLDS = 5
CONFIDENCE = 0.95
SPARE_SLOTS = (0, 1, 2)
"""Spare slots of each rank that are tried, as engines do (`--ep-num-redundant-experts`, `num_slots`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EplbCase:
    """EPLB with one number of replicas against the experts in order (`contiguous`), which engines start with.

    Gains are relative falls of the mean step time, positive where EPLB helps.

    redundant   replica slots of a layer.
    predicted   mean gain over folds of the fitted part: plans see the other folds, the gain is of the fold left out.
    noise       half of the interval that holds the gain on as many other requests (Student's t over the folds).
    held_out    the gain in a simulation of the requests that nothing was fitted on.
    changes_s   what the mean step time of a device gains by cause there, EPLB minus contiguous [s].
    """

    redundant: int
    predicted: float
    noise: float
    held_out: float
    changes_s: dict[str, float]

    @property
    def verdict(self) -> str:
        """`helps` or `harms` where the prediction exceeds its noise, `no difference` otherwise."""
        if abs(self.predicted) <= self.noise:
            return "no difference"
        return "helps" if self.predicted > 0 else "harms"


@dataclass(frozen=True, slots=True, kw_only=True)
class EplbAnswer:
    """Cases by replica slots; `folds` parts of the fitted requests, `steps` simulated for each case and part."""

    cases: tuple[EplbCase, ...]
    folds: int
    steps: int

    @property
    def best(self) -> EplbCase:
        """The case with the largest predicted gain."""
        return max(self.cases, key=lambda case: case.predicted)


def will_eplb_help(setting: Setting, schedule: ScheduleSpec, seed: int = 0) -> EplbAnswer:
    """EPLB with 0, 1 and 2 spare slots a rank: predicted on folds of the fitted part, simulated on held-out requests.

    Raises TraceError where the fitted part has one sequence only, which leaves nothing to tell noise from gain.
    """
    fitted = sequence_parts(setting.trace, setting.workload, seed).fit
    folds = min(FOLDS, len(fitted))
    if folds < 2:
        raise TraceError(
            f"the fitted part has {len(fitted)} sequences, at least 2 are needed; raise workload.split.fit"
        )
    parts = np.array_split(generator(seed, Use.EPLB_FOLDS).permutation(fitted), folds)
    steps = max(2, setting.batches.n_steps // folds)
    settings = [_fold(setting, parts, left_out, steps, seed) for left_out in range(folds)]
    counts = _replica_counts(setting)
    by_fold = np.array([_gains(fold, schedule, counts, seed) for fold in settings])
    held_out = _simulated(setting, schedule, counts, seed)
    # The fold means scatter by fit and requests; the held-out mean scatters as much as the mean of as many folds.
    spread = by_fold.std(axis=0, ddof=1) * np.sqrt(2 / folds) * scipy.special.stdtrit(folds - 1, (1 + CONFIDENCE) / 2)
    base = held_out[0]
    cases = [
        EplbCase(
            redundant=redundant,
            predicted=float(by_fold[:, column].mean()),
            noise=float(spread[column]),
            held_out=_gain(base, execution),
            changes_s=_changes_s(base, execution),
        )
        for column, (redundant, execution) in enumerate(zip(counts, held_out[1:], strict=True))
    ]
    return EplbAnswer(cases=tuple(cases), folds=folds, steps=steps)


def _fold(setting: Setting, parts: Sequence[NDArray[np.int64]], left_out: int, steps: int, seed: int) -> Setting:
    """The setting fitted on all parts but one and judged on that one."""
    others = np.sort(np.concatenate([part for number, part in enumerate(parts) if number != left_out]))
    batches = steps_of(setting, np.sort(parts[left_out]), steps, generator(seed, Use.EPLB_STEPS, left_out))
    loads = expert_loads(select_sequences(setting.trace, others))
    return replace(setting, fit_loads=loads, batches=batches)


def _replica_counts(setting: Setting) -> list[int]:
    """Replica slots of a layer for each number of spare slots a rank, at least those that let experts divide evenly."""
    n_experts, n_ranks = setting.model.n_experts, setting.layout.n_ranks
    least = least_redundant(n_experts, n_ranks)
    most = n_experts * (n_ranks - 1)
    return [least + spare * n_ranks for spare in SPARE_SLOTS if least + spare * n_ranks <= most]


def _gains(setting: Setting, schedule: ScheduleSpec, counts: list[int], seed: int) -> list[float]:
    base, *others = _simulated(setting, schedule, counts, seed)
    return [_gain(base, other) for other in others]


def _simulated(setting: Setting, schedule: ScheduleSpec, counts: list[int], seed: int) -> list[Execution]:
    """Contiguous, then EPLB with each number of replicas, on the setting's steps."""
    plans = [solve_placement(setting, PlacementSpec(redundant=counts[0]), seed)]
    plans += [solve_placement(setting, PlacementSpec(solver="eplb", redundant=count), seed) for count in counts]
    return [execute_schedule(setting, plan, reduced(setting, plan, schedule), schedule) for plan in plans]


def _gain(base: Execution, other: Execution) -> float:
    return float(1 - other.step_times_s.mean() / base.step_times_s.mean())


def _changes_s(base: Execution, other: Execution) -> dict[str, float]:
    before, after = measure.breakdown_s(base, 0.0), measure.breakdown_s(other, 0.0)
    return {cause: after[cause] - before[cause] for cause in before}
