"""TensorRT-LLM's load balancer file, named by `moe_config.load_balancer`.

Source: examples/wide_ep/ep_load_balancer of NVIDIA/TensorRT-LLM (`generate_eplb_config.py`): slots of a rank are
consecutive, keys of `initial_global_assignments` are model layer numbers of MoE layers.
"""

from __future__ import annotations

import json
from pathlib import Path

from placement.formats.contents import Deployment, PlanFile
from placement.plan import Placement
from scenarios.errors import PlacementError
from scenarios.files import write_text
from scenarios.yaml_source import read_yaml
from traces.formats.files import need, whole_numbers

ASSIGNMENTS = "initial_global_assignments"


def write(content: PlanFile, path: Path) -> None:
    """YAML with the slots of every MoE layer and no later updates (`layer_updates_per_iter: 0`)."""
    slots = content.slots_by_rank("tensorrt-llm")
    lines = [f"num_slots: {slots.shape[1]}", "layer_updates_per_iter: 0", f"{ASSIGNMENTS}:"]
    lines += [
        f"  {layer}: {json.dumps(row)}"
        for layer, row in zip(content.deployment.moe_layers, slots.tolist(), strict=True)
    ]
    write_text("\n".join(lines) + "\n", path)


def read(path: Path, deployment: Deployment) -> Placement:
    """The plan in force when the engine starts; raises PlacementError where MoE layers are missing or others named."""
    content = read_yaml(path).data
    n_slots = need(content, "num_slots", int, path.name)
    rows = {int(layer): slots for layer, slots in need(content, ASSIGNMENTS, dict, path.name).items() if _whole(layer)}
    missing = sorted(set(deployment.moe_layers) - rows.keys())
    foreign = sorted(rows.keys() - set(deployment.moe_layers))
    if missing or foreign:
        raise PlacementError(
            f"{ASSIGNMENTS} lacks MoE layers {missing[:8]} and names layers {foreign[:8]} that {deployment.model} does "
            f"not have; take the file of this model"
        )
    ordered = [rows[layer] for layer in deployment.moe_layers]
    table = whole_numbers(ordered, f"{path.name} {ASSIGNMENTS}", ndim=2)
    if table.shape[1] != n_slots:
        raise PlacementError(f"num_slots is {n_slots}, but layers have {table.shape[1]} slots; export the file again")
    return deployment.placement(table, path.stem)


def _whole(layer: object) -> bool:
    if not str(layer).isdecimal():
        raise PlacementError(f"{ASSIGNMENTS}: '{layer}' is no layer number; export the file again")
    return True
