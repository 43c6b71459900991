"""moesim's own plan file: JSON that says model, layers and ranks, so that a plan for another model is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from placement.formats.contents import Deployment, PlanFile
from placement.plan import Placement
from scenarios.errors import PlacementError
from scenarios.files import write_text
from scenarios.placement_specs import SplitName
from traces.formats.files import need, read_json, whole_numbers

VERSION = 1
MARK = "moesim_placement"


def write(content: PlanFile, path: Path) -> None:
    """JSON with model, MoE layers, experts, ranks, split, and expert and rank of every slot; one layer a line."""
    plan, deployment = content.placement, content.deployment
    head = {
        MARK: VERSION,
        "name": plan.name,
        "model": deployment.model,
        "moe_layers": list(deployment.moe_layers),
        "n_experts": plan.n_experts,
        "n_ranks": plan.n_ranks,
        "split": plan.split,
    }
    fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    tables = {"expert_of_slot": plan.expert_of_slot, "rank_of_slot": plan.rank_of_slot}
    fields += [f'  "{key}": {json_rows(table.tolist())}' for key, table in tables.items()]
    write_text("{\n" + ",\n".join(fields) + "\n}\n", path)


def read(path: Path, deployment: Deployment) -> Placement:
    """The plan, with its own name and split; raises PlacementError where it is for another model or other ranks."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get(MARK) != VERSION:
        raise PlacementError(f"no '{MARK}: {VERSION}' inside; export the plan again")
    where = path.name
    _check(content, deployment, where)
    split = need(content, "split", str, where)
    if split not in get_args(SplitName):
        raise PlacementError(f"split is '{split}', not one of {', '.join(get_args(SplitName))}; export the plan again")
    tables = {
        name: whole_numbers(need(content, name, list, where), f"{where} {name}", ndim=2)
        for name in ("expert_of_slot", "rank_of_slot")
    }
    return Placement(
        **tables,  # type: ignore[arg-type]  # Placement makes them int32
        n_experts=deployment.n_experts,
        n_ranks=deployment.n_ranks,
        split=split,  # type: ignore[arg-type]  # checked above
        name=need(content, "name", str, where),
    )


def _check(content: dict[str, Any], deployment: Deployment, where: str) -> None:
    """Raise PlacementError with all that differs between a plan file and where it is to be used."""
    pairs = {
        "model": (need(content, "model", str, where), deployment.model),
        "experts": (need(content, "n_experts", int, where), deployment.n_experts),
        "ranks": (need(content, "n_ranks", int, where), deployment.n_ranks),
        "MoE layers": (tuple(need(content, "moe_layers", list, where)), deployment.moe_layers),
    }
    wrong = [
        f"{name} {_shown(found)} instead of {_shown(wanted)}"
        for name, (found, wanted) in pairs.items()
        if found != wanted
    ]
    if wrong:
        raise PlacementError(f"the plan is for {', '.join(wrong)}; solve one for this scenario with `moesim place`")


def _shown(value: object) -> str:
    """Long lists of layers by their number, first and last."""
    if isinstance(value, tuple) and len(value) > 4:
        return f"{value[0]}..{value[-1]} ({len(value)})"
    return str(list(value) if isinstance(value, tuple) else value)


def json_rows(rows: list[list[int]]) -> str:
    """A table as JSON, one row a line."""
    return "[\n    " + ",\n    ".join(json.dumps(row) for row in rows) + "\n  ]"
