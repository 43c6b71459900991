"""SGLang's expert locations: a map for `--init-expert-location`, or counts from which it runs EPLB when it starts.

Source: python/sglang/srt/eplb/expert_location.py of sgl-project/sglang: `compute_initial_expert_location_metadata`
expands a dict with `physical_to_logical_map` into keyword arguments, so no other key may stand beside it, and wants a
name that ends in .json or .pt. Rows are all hidden layers, dense ones included. KTransformers reads the same counts, as
a `stat` dump of the expert distribution recorder (logical_count [step, layer, expert]), to choose experts for the GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placement.formats.contents import Counts, Deployment, PlanFile
from placement.formats.own import json_rows
from placement.plan import Placement
from scenarios.errors import PlacementError
from scenarios.files import whole_file, write_text
from traces.formats.files import need, read_json, whole_numbers
from traces.formats.tensors import read_torch, torch_array, write_torch

MAP = "physical_to_logical_map"
COUNT = "logical_count"


def write_map(content: PlanFile, path: Path) -> None:
    """JSON with `physical_to_logical_map` [hidden layer][slot]; dense layers get SGLang's own trivial row."""
    slots = content.slots_by_rank("sglang")
    deployment = content.deployment
    trivial = np.arange(slots.shape[1], dtype=np.int32) % deployment.n_experts
    table = np.tile(trivial, (deployment.n_layers, 1))
    table[list(deployment.moe_layers)] = slots
    write_text(f'{{\n  "{MAP}": {json_rows(table.tolist())}\n}}\n', path)


def read_map(path: Path, deployment: Deployment) -> Placement:
    """The plan of the MoE layers of a map."""
    content = read_json(path)
    record = content if isinstance(content, dict) else {}
    table = whole_numbers(need(record, MAP, list, path.name), f"{path.name} {MAP}", ndim=2)
    return deployment.placement(deployment.rows_of_layers(table, MAP), path.stem)


def write_counts(content: PlanFile, path: Path) -> None:
    """JSON with `logical_count` [hidden layer][expert]: the counts of the fitted part, 0 in dense layers."""
    write_text(f'{{\n  "{COUNT}": {json_rows(_all_layers(content).tolist())}\n}}\n', path)


def read_counts(path: Path, deployment: Deployment) -> Counts:
    """Counts int64[MoE layer, expert] of JSON [layer][expert] or [step][layer][expert], summed over steps."""
    content = read_json(path)
    values = need(content if isinstance(content, dict) else {}, COUNT, list, path.name)
    first = values[0] if values else None
    deep = isinstance(first, list) and bool(first) and isinstance(first[0], list)
    counts = whole_numbers(values, f"{path.name} {COUNT}", ndim=3 if deep else 2)
    return _summed(counts if deep else counts[None], deployment)


def write_activations(content: PlanFile, path: Path) -> None:
    """A `stat` dump (`torch.save`): logical_count int32 [1 step, hidden layer, expert], as the recorder writes it."""
    counts = _all_layers(content)
    if counts.max() > np.iinfo(np.int32).max:
        raise PlacementError(
            f"a count of {counts.max()} exceeds int32, which the recorder uses; fit on a shorter trace"
        )
    fields = {"rank": 0, COUNT: counts[None].astype(np.int32), "average_utilization_rate_over_window": None}
    with whole_file(path) as temporary:
        write_torch(fields, temporary)


def read_activations(path: Path, deployment: Deployment) -> Counts:
    """Counts int64[MoE layer, expert] of a `stat` dump, summed over its steps."""
    content = read_torch(path)
    if not isinstance(content, dict) or COUNT not in content:
        raise PlacementError(f"no '{COUNT}' inside; is it a dump of recorder mode stat?")
    return _summed(torch_array(content[COUNT], COUNT, ndim=3, file_bytes=path.stat().st_size), deployment)


def _all_layers(content: PlanFile) -> Counts:
    """Counts int64[hidden layer, expert]."""
    deployment = content.deployment
    counts = np.zeros((deployment.n_layers, deployment.n_experts), np.int64)
    counts[list(deployment.moe_layers)] = content.loads
    return counts


def _summed(counts: NDArray[np.integer], deployment: Deployment) -> Counts:
    """int64[MoE layer, expert] of [step, hidden layer, expert].

    Raises PlacementError where layers or experts are missing, a count is negative, or a MoE layer counts nothing.
    """
    if counts.shape[2] != deployment.n_experts:
        raise PlacementError(
            f"{COUNT} has {counts.shape[2]} experts, but {deployment.model} has {deployment.n_experts}; "
            f"record the counts of this model"
        )
    if counts.min(initial=0) < 0:
        raise PlacementError(f"a count is negative ({counts.min()}); record again")
    rows: Counts = deployment.rows_of_layers(counts.sum(axis=0, dtype=np.int64), COUNT).astype(np.int64)
    idle = np.flatnonzero(rows.sum(axis=1) == 0)
    if len(idle):
        layers = [deployment.moe_layers[row] for row in idle[:8]]
        raise PlacementError(f"{COUNT} is 0 in {len(idle)} MoE layers, such as {layers}; record again with traffic")
    return rows
