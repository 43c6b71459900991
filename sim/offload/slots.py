"""Slots of a device for experts that live in the host's memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.plan import Placement
from scenarios.errors import ScenarioError
from scenarios.models import ModelCard
from scenarios.offload_specs import LEARNED, GradesSpec, OffloadSpec
from scenarios.schedule_specs import ScheduleSpec
from sim.setting import Setting


def slots_of(placement: Placement, spec: OffloadSpec) -> NDArray[np.int64]:
    """Slots of every rank, int64[layer, rank], of one pool int64[1, rank]: never more than the experts placed on it."""
    placed = placement.slots_per_rank().astype(np.int64)
    if spec.pool == "model":
        placed = placed.sum(axis=0, keepdims=True)
    shared = np.rint(placed * (spec.share or 0.0)).astype(np.int64)
    slots = np.minimum(shared if spec.slots is None else spec.slots, placed)
    slots[: spec.whole_layers] = placed[: spec.whole_layers]
    return slots


def low_slots_of(placement: Placement, spec: OffloadSpec) -> NDArray[np.int64]:
    """Slots for experts in low precision of every rank, int64[layer, rank], of one pool int64[1, rank]."""
    n_slots = 0 if spec.grades is None else spec.grades.slots
    return np.minimum(n_slots, slots_of(placement, spec.model_copy(update={"slots": None, "share": 1.0})))


def lowered(model: ModelCard, grades: GradesSpec) -> ModelCard:
    """The model with its experts in the lower precision."""
    return model.model_copy(update={"expert_dtype": grades.dtype})


def check_offload(setting: Setting, placement: Placement, schedule: ScheduleSpec, spec: OffloadSpec) -> None:
    """Raise ScenarioError where a schedule knows no offloaded experts, or the slots cannot serve a token."""
    if (schedule.overlap, schedule.pim) != ("none", "none") or schedule.transforms_loads:
        raise ScenarioError(
            f"memory.offload has a schedule of its own: leave schedule.overlap ({schedule.overlap}), pim, move and "
            "payload out"
        )
    cancels = spec.prefetch is not None and spec.prefetch.cancel
    timed = spec.priority != "fifo" or spec.packet is not None or spec.ssd is not None or cancels
    if setting.widths is not None and (spec.pool == "model" or spec.grades is not None or timed):
        raise ScenarioError(
            "memory.offload: slots are as large as the widest expert of their layer, and copies and reads of one "
            "size; with `bits` leave pool: model, grades, priority, packet, cancel and ssd out"
        )
    least = min(setting.model.top_k, int(placement.slots_per_rank().max()))
    slots = int(slots_of(placement, spec).min())
    if spec.miss != "host" and slots < least:
        raise ScenarioError(
            f"memory.offload: {slots} slots cannot hold the {least} experts of one token; give slots: {least} or more, "
            "or miss: host"
        )
    if spec.prefetch is not None and spec.prefetch.by in LEARNED and not setting.fit_sequences:
        raise ScenarioError(
            f"memory.offload.prefetch: {spec.prefetch.by} learns from the fitted part, and workload.split.fit 0 leaves "
            "only the sequences that judge it; give split: {fit: 0.5, evaluate: 0.5}"
        )
    if spec.prefetch is not None and (spec.prefetch.width or 0) > slots:
        raise ScenarioError(
            f"memory.offload.prefetch: width {spec.prefetch.width} exceeds the {slots} slots; give {slots} or fewer"
        )
