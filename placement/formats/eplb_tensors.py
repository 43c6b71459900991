"""The tensors of DeepSeek's EPLB, over MoE layers only: .npz and .pt hold all three, .npy the map alone.

Source: `rebalance_experts` of github.com/deepseek-ai/EPLB: physical_to_logical_map [layer, slot],
logical_to_physical_map [layer, expert, copy] padded with -1, expert_count [layer, expert].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from placement.formats.contents import Deployment, PlanFile
from placement.plan import Placement
from scenarios.errors import PlacementError
from scenarios.files import whole_file
from traces.formats.files import read_npy, whole_numbers
from traces.formats.tensors import read_torch, torch_array, write_torch
from traces.storage import read_arrays

MAP = "physical_to_logical_map"


def write(content: PlanFile, path: Path) -> None:
    """All tensors as int64, as EPLB returns them, or the map alone in a .npy file."""
    slots = content.slots_by_rank("eplb").astype(np.int64)
    plan = content.placement
    tensors = {
        MAP: slots,
        "logical_to_physical_map": plan.slots_of_expert().astype(np.int64),
        "expert_count": plan.replica_counts().astype(np.int64),
    }
    with whole_file(path) as temporary:
        if path.suffix == ".pt":
            write_torch(tensors, temporary)
            return
        with temporary.open("wb") as stream:
            if path.suffix == ".npy":
                np.save(stream, slots, allow_pickle=False)
            else:
                np.savez(stream, allow_pickle=False, **tensors)


def read(path: Path, deployment: Deployment) -> Placement:
    """The plan of the map; raises PlacementError where the other tensors, if there, contradict it."""
    tensors = _tensors(path)
    if MAP not in tensors:
        raise PlacementError(f"no '{MAP}' inside; save what rebalance_experts returns under its names")
    plan = deployment.placement(tensors[MAP], path.stem)
    counts = tensors.get("expert_count")
    if counts is not None and not np.array_equal(counts, plan.replica_counts()):
        raise PlacementError(f"expert_count does not count the slots of {MAP}; save the tensors of one call")
    slots = tensors.get("logical_to_physical_map")
    if slots is not None and not _same_slots(slots, plan):
        raise PlacementError(f"logical_to_physical_map is not the inverse of {MAP}; save the tensors of one call")
    return plan


def _tensors(path: Path) -> Mapping[str, Any]:
    """Arrays by name."""
    if path.suffix == ".npy":
        return {MAP: whole_numbers(read_npy(path), path.name, ndim=2)}
    axes = {MAP: 2, "logical_to_physical_map": 3, "expert_count": 2}
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        return {name: whole_numbers(arrays[name], name, ndim=n) for name, n in axes.items() if name in arrays}
    content = read_torch(path)
    tensors = content if isinstance(content, dict) else {}
    size = path.stat().st_size
    return {
        name: torch_array(tensors[name], name, ndim=n, file_bytes=size) for name, n in axes.items() if name in tensors
    }


def _same_slots(slots: Any, plan: Placement) -> bool:
    """Whether int[layer, expert, copy] lists the plan's slots; the reference pads to more copies than are used."""
    own = plan.slots_of_expert()
    if slots.shape[:2] != own.shape[:2] or slots.shape[2] < own.shape[2]:
        return False
    descending = -np.sort(-slots, axis=2)[:, :, : own.shape[2]]
    return bool((descending == -np.sort(-own, axis=2)).all() and (slots >= 0).sum() == (own >= 0).sum())
