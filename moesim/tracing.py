"""A routing trace, opened: what it is, and what its routing is like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.shown import Part, Rows, Shown
from moesim.trace_tables import facts_table
from sim.outputs import json_of, write_named
from traces.facts import facts, statistics
from traces.routing import RoutingTrace

if TYPE_CHECKING:
    from sim.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TraceResult(Shown):
    """A routing trace by its name: `routing` (ids, positions, gate weights), `statistics`."""

    name: str
    routing: RoutingTrace

    def statistics(self, *, locality: bool = False) -> dict[str, Any]:
        """What `moesim trace stats` shows: load, reuse, affinity; with `locality` also SRP, SCH and cache hits."""
        return statistics(self.routing, locality=locality)

    def as_json(self) -> dict[str, Any]:
        """What `moesim trace info` shows: shape, provenance, and what the import found."""
        return facts(self.routing)

    def save(self, folder: str | Path) -> list[Path]:
        """Write info.json, stats.json and routing.png."""
        info = write_named(Path(folder), ("info.json", self.json_text()), {})
        return info + write_named(Path(folder), ("stats.json", json_of(self.statistics())), self.figures)

    def parts(self) -> Iterator[Part]:
        """Shape and provenance."""
        yield facts_table(self.as_json())

    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """`layers`: statistics of every MoE layer; affinity is that to the next one."""
        return {"layers": self._layers}

    def drawings(self) -> dict[str, Callable[[], Figure]]:
        """`routing`: load, reuse, affinity, domains, SRP and cache hits."""
        return {"routing": self._figure}

    def _layers(self) -> Rows:
        columns = {name: values for name, values in self.statistics().items() if isinstance(values, list)}
        return [
            {"layer": layer} | {name: values[place] for name, values in columns.items() if place < len(values)}
            for place, layer in enumerate(self.routing.moe_layers)
        ]

    def _figure(self) -> Figure:
        import numpy as np

        from sim.routing_plots import routing_figure
        from traces.profile import profile

        return routing_figure([profile(self.name, self.routing, np.random.default_rng(0))])
