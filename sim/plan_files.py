"""Plans that are read, not solved: files of engines and of `moesim place`, for the model and ranks of a setting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from placement.formats import format_of, import_plan
from placement.formats.contents import Counts, Deployment, PlanFile
from placement.plan import Placement
from placement.problem import PlacementProblem
from placement.solve import solve
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """A plan that came from a file, and the format of that file."""

    placement: Placement
    format: str


def deployment_of(setting: Setting) -> Deployment:
    """Model and ranks of a setting, as plan files need them."""
    model = setting.model
    return Deployment(
        model=model.name,
        n_layers=model.n_layers,
        moe_layers=model.moe_layers,
        n_experts=model.n_experts,
        n_ranks=setting.layout.n_ranks,
    )


def plan_file(setting: Setting, placement: Placement) -> PlanFile:
    """What an export of the plan holds: the plan, its deployment, and the counts of the fitted part."""
    return PlanFile(placement=placement, deployment=deployment_of(setting), loads=setting.fit_loads)


def plan_of_file(setting: Setting, spec: PlacementSpec, base: Path) -> ReadPlan:
    """The plan of `spec.file`, relative to `base`; of counts it is EPLB's with `spec.redundant` slots, as SGLang does.

    `split` and `name` of `spec` come before those of the file. Raises PlacementError where the file does not belong to
    the setting, or has other redundant slots than `spec` states.
    """
    path = _found(Path(str(spec.file)), base)
    content = import_plan(path, deployment_of(setting))
    format = format_of(path)
    if not isinstance(content, Placement):
        return ReadPlan(placement=_eplb(setting, spec, content, path.name), format=format)
    stated = spec.model_fields_set
    if "redundant" in stated and content.redundant_slots != spec.redundant:
        raise PlacementError(
            f"{path}: the plan has {content.redundant_slots} redundant slots, not {spec.redundant}; leave redundant out"
        )
    split = spec.split if "split" in stated else content.split
    name = path.name if content.name == path.stem else f"{content.name} ({path.name})"
    return ReadPlan(placement=replace(content, name=spec.name or name, split=split), format=format)


def _found(name: Path, base: Path) -> Path:
    """The file beside the scenario, or else below the working directory."""
    return next((path for path in (base / name, name) if path.is_file()), base / name)


def _eplb(setting: Setting, spec: PlacementSpec, counts: Counts, file: str) -> Placement:
    problem = PlacementProblem(
        loads=counts.astype(np.float64),
        n_ranks=setting.layout.n_ranks,
        ranks_per_node=setting.layout.ranks_per_node,
        redundant=spec.redundant,
        n_groups=setting.model.n_group,
    )
    name = spec.name or f"eplb of {file}" + (f" +{spec.redundant}" if spec.redundant else "")
    eplb = PlacementSpec(
        solver="eplb", name=name, redundant=spec.redundant, split=spec.split, hierarchical=spec.hierarchical
    )
    return solve(problem, eplb).placement
