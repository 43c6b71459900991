"""A plan against EPLB on fitted, held-out and shifted requests: the parts of a setting for `placement.judgement`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.auto import least_redundant
from placement.judgement import Judgement, Part, grouped_part, judge
from placement.plan import Placement
from scenarios.placement_specs import PlacementSpec
from scenarios.schedule_specs import ExchangeSpec
from sim.fitted import steps_of
from sim.kernel_pricing import machine_of
from sim.setting import Setting, sequence_parts
from traces.batches import Batches


def reference_spec(setting: Setting) -> PlacementSpec:
    """EPLB with one spare slot a rank beyond what lets experts divide; without spare slots on a single rank."""
    n_experts, n_ranks = setting.model.n_experts, setting.layout.n_ranks
    least = least_redundant(n_experts, n_ranks)
    redundant = least + n_ranks
    return PlacementSpec(solver="eplb", redundant=redundant if redundant <= n_experts * (n_ranks - 1) else least)


def judged(setting: Setting, plan: Placement, reference: Placement, exchange: ExchangeSpec, seed: int) -> Judgement:
    """The plan over the reference on each part; `exchange` is that of the schedule, `seed` that of the scenario."""
    sequences = sequence_parts(setting.trace, setting.workload, seed)
    shifted = setting.workload.split.shifted
    parts = [_part("fitted", setting, sequences.fit, seed), _part("held out", setting, sequences.judged, seed)]
    if shifted is not None:
        parts.append(_part(f"shifted: {shifted}", setting, sequences.shifted, seed))
    return judge(machine_of(setting, exchange), plan, reference, parts, seed)


def _part(name: str, setting: Setting, sequences: NDArray[np.int64], seed: int) -> Part:
    def compose(group: NDArray[np.int64], n_steps: int, rng: np.random.Generator) -> Batches:
        return steps_of(setting, group, n_steps, rng)

    return grouped_part(name, sequences, compose, n_steps=setting.workload.steps, seed=seed)
