"""The result of `bound`: what limits the throughput of a scenario's hardware, and the best purchase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moesim
from moesim.shown import Part, Rows, Shown, as_parts
from scenarios.errors import MoesimError
from sim.bound import tables
from sim.bound.bounds import Bounds
from sim.bound.purchase import Choice, Purchase
from sim.bound.resources import Resource
from sim.outputs import write_named

if TYPE_CHECKING:
    from sim.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BoundResult(Shown):
    """Bounds of a scenario: `tokens_per_s`, `binding`; with a `budget:` the `best` purchase."""

    bounds: Bounds
    choice: Choice | None = None

    @property
    def tokens_per_s(self) -> float:
        """Throughput of all devices that nothing exceeds at the scenario's batch [tokens/s]."""
        return self.bounds.at.tokens_per_s

    @property
    def binding(self) -> Resource:
        """The resource that sets the bound."""
        return self.bounds.at.binding

    @property
    def best(self) -> Purchase:
        """The best purchase. Raises MoesimError where the scenario has no budget."""
        if self.choice is None:
            raise MoesimError(f"{self.bounds.scenario}: no `budget:` section, so that there is no purchase")
        return self.choice.best

    def as_json(self) -> dict[str, Any]:
        """The result file of `bound`."""
        return tables.as_json(self.bounds, self.choice, moesim.__version__)

    def save(self, folder: str | Path) -> list[Path]:
        """Write bound.json and the figures."""
        return write_named(Path(folder), ("bound.json", self.json_text()), self.figures)

    def parts(self) -> Iterator[Part]:
        """Resources, what more of them brings, other batches, the gap to the plan; then purchases."""
        bounds, choice = self.bounds, self.choice
        yield from (tables.resource_table(bounds), tables.lever_table(bounds), tables.batch_table(bounds))
        lines = tables.gap_lines(bounds)
        if choice is not None:
            yield from (tables.group_table(choice), tables.purchase_table(choice))
            lines += tables.purchase_lines(choice)
        yield from as_parts(lines)

    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """`resources` of the scenario's batch, `batches`, `levers`, `grid`; with a budget `groups` and `front`."""
        content = self.as_json()
        batches = [{name: value for name, value in one.items() if name != "resources"} for one in content["batches"]]
        found = {"resources": content["bound"]["resources"], "batches": batches}
        found |= {name: content[name] for name in ("levers", "grid", "groups", "front") if name in content}
        return {name: partial(list, rows) for name, rows in found.items()}

    def drawings(self) -> dict[str, Callable[[], Figure]]:
        """`bound-batch`, in decode `bound-context`, with a budget `bound-budget`."""
        from sim.bound import plots

        return plots.drawings(self.bounds, self.choice)
