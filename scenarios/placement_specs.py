"""What a scenario says of where experts live. A conformance test compares the names with the implementations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scenarios.sources import Spec
from scenarios.units import Seconds

SolverName = Literal[
    "contiguous",
    "round-robin",
    "random",
    "greedy",
    "eplb",
    "balance",
    "flexmoe",
    "smartmoe",
    "saa",
    "joint",
    "auto",
    "chain-exact",
    "alsa",
    "two-stage",
    "exflow",
    "ilp-affinity",
    "ilp-load",
    "ilp-saa",
    "migrate",
]
SplitName = Literal["even", "least-loaded", "lp", "lp-local"]


class PlacementSpec(Spec):
    """A placement solver with its options, or the file of a plan."""

    solver: Literal[SolverName, "file"] = Field(default="contiguous", description="see `moesim list solvers`")
    file: str | None = Field(
        default=None, description="a plan of `moesim place` or of an engine, or counts for EPLB; see `list formats`"
    )
    redundant: int = Field(default=0, ge=0, description="replica slots of a layer, over all ranks together")
    total_redundant: int | None = Field(
        default=None, ge=0, description="replica slots of all layers together; each layer takes what pays most there"
    )
    split: SplitName = Field(default="even", description="how tokens choose among replicas")
    spare: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 2),
        min_length=1,
        description="spare slots of a rank: that auto tries, or that a layer may take of total_redundant",
    )
    seed: int = Field(default=0, ge=0)
    hierarchical: bool | None = Field(
        default=None, description="eplb: groups to nodes first; default: where it divides"
    )
    time_limit: Seconds = Field(default=60.0, gt=0, description="exflow, ilp-*: time of all programmes together")
    current: str | None = Field(default=None, description="migrate, flexmoe, smartmoe: file of the plan in force")
    moves: int | None = Field(default=None, ge=0, description="migrate: most copies moved, all layers; default: any")
    name: str | None = Field(default=None, description="name of the row in tables")

    @model_validator(mode="before")
    @classmethod
    def _file_solves(cls, raw: Any) -> Any:
        return {"solver": "file", **raw} if isinstance(raw, dict) and raw.get("file") is not None else raw

    @model_validator(mode="after")
    def _file_or_solver(self) -> PlacementSpec:
        if (self.solver == "file") != (self.file is not None):
            raise ValueError("a plan is either solved ('solver: NAME') or read ('file: FILE')")
        return self

    @model_validator(mode="after")
    def _own_options(self) -> PlacementSpec:
        if self.solver == "auto" and self.redundant:
            raise ValueError(
                f"auto chooses the replica slots itself: give spare: [...], not redundant: {self.redundant}"
            )
        if self.total_redundant is not None and (
            "redundant" in self.model_fields_set or self.solver in ("auto", "file")
        ):
            raise ValueError(
                "total_redundant is shared by all layers: leave redundant out, and name a solver other than auto"
            )
        if self.solver != "auto" and self.total_redundant is None and "spare" in self.model_fields_set:
            raise ValueError(f"spare is an option of auto and of total_redundant, not of {self.solver}; give redundant")
        if self.solver != "migrate" and self.moves is not None:
            raise ValueError(f"moves is an option of solver migrate, not of {self.solver}")
        return self
