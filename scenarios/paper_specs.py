"""What a file of published results may say: a scenario, its cases, what is fitted, and the claims to predict."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scenarios.published import Published, read_published
from scenarios.sources import Spec

CaseName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", description="small letters, digits and _")]
INFEASIBLE = "OOM"


class CaseSpec(Spec):
    """Changes of the paper's scenario, or of another case, by path: `{cluster.nodes: 2}`."""

    of: CaseName | None = None
    set: dict[str, Any] = Field(default={})


class FitSpec(Spec):
    """One number of the scenario, solved so that one metric of one case meets a number of the paper's own baseline."""

    path: str = Field(description="number of the scenario, such as cluster.inter_bandwidth or cluster.experts_slowdown")
    case: CaseName
    metric: str
    published: float | str
    range: tuple[float | str, float | str] = Field(description="between these, in one unit")
    cases: tuple[CaseName, ...] = Field(default=(), description="cases that get the number; default: all")
    source: str = Field(min_length=3)

    @model_validator(mode="after")
    def _readable(self) -> FitSpec:
        read_published(self.published)
        low, high = (read_published(end) for end in self.range)
        if low.unit != high.unit or not 0 < low.number < high.number:
            raise ValueError(f"range: {self.range[0]} to {self.range[1]} must ascend from above 0, in one unit")
        return self


Axis = Annotated[tuple[dict[str, Any], ...], Field(min_length=1, description="changes by path, one entry a point")]
Grid = Annotated[tuple[Axis, ...], Field(min_length=1, description="axes; every combination is a point")]


class ClaimSpec(Spec):
    """One published result and how it is predicted: an expression over metrics of cases, or a ranking of cases."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    quantity: str
    config: str
    published: float | str | tuple[str, ...] = Field(
        description=f"number, with its unit where it has one; cases, best first; or {INFEASIBLE}"
    )
    predict: str | None = Field(
        default=None, description="such as step_time_s(linear) / step_time_s(chunked); min(a, b) of several values"
    )
    grid: str | None = Field(default=None, description="predict: mean over the points of this grid")
    rank: str | None = Field(default=None, description="metric that orders the published cases")
    best: Literal["lowest", "highest"] = Field(default="lowest", description="rank: which value of the metric is best")
    relation: Literal["equal", "at-least", "at-most"] = Field(
        default="equal", description="at-least, at-most: what the paper says is a limit"
    )
    mark: Literal["dig", "der", "mem", "?"] | None = Field(
        default=None, description="read off a plot, derived, remembered, or inconsistent in its source"
    )
    source: str = Field(min_length=3)
    reason: str | None = Field(default=None, min_length=10, description="why the prediction is far off")

    @model_validator(mode="after")
    def _one_way(self) -> ClaimSpec:
        if (self.predict is None) == (self.rank is None):
            raise ValueError("give either 'predict: EXPRESSION' or 'rank: METRIC'")
        if (self.rank is not None) != isinstance(self.published, tuple):
            raise ValueError("a rank is published as a list of cases, a prediction as one number")
        if self.grid is not None and self.predict is None:
            raise ValueError("a grid is what a prediction is averaged over: give 'predict: EXPRESSION'")
        if isinstance(self.published, tuple) and len(set(self.published)) < max(2, len(self.published)):
            raise ValueError("a ranking needs two or more cases, each once")
        if not isinstance(self.published, tuple) and self.published != INFEASIBLE:
            read_published(self.published)
        return self

    @property
    def order(self) -> tuple[str, ...]:
        """The published cases of a ranking, best first; none where the claim is a number."""
        return self.published if isinstance(self.published, tuple) else ()

    @property
    def target(self) -> Published:
        """The published number of a prediction; an infeasible case is 0 of the metric `feasible`."""
        return read_published(0.0 if self.published == INFEASIBLE else str(self.published))


class PaperSpec(Spec):
    """The published results of one system."""

    system: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    source: str
    note: str | None = None
    scenario: dict[str, Any] = Field(description="as in any scenario file; paths are relative to this file")
    cases: dict[CaseName, CaseSpec] = Field(min_length=1)
    grids: dict[CaseName, Grid] = Field(
        default={}, description="changes that all cases go through, for means over them"
    )
    fits: tuple[FitSpec, ...] = ()
    claims: tuple[ClaimSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_grids(self) -> PaperSpec:
        unknown = sorted({claim.grid for claim in self.claims if claim.grid} - set(self.grids))
        if unknown:
            raise ValueError(f"claims name grids that are not there: {', '.join(unknown)}")
        return self

    def points(self, grid: str) -> Iterator[dict[str, Any]]:
        """Changes of every point of a grid, by path."""
        for entries in product(*self.grids[grid]):
            yield {path: value for entry in entries for path, value in entry.items()}
