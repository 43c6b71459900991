"""Tasks of a reconfiguration: what each takes, what it needs to itself, and after which others it may begin."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import simpy

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """When a task ran [s], from the beginning of the reconfiguration."""

    begin_s: float
    end_s: float


def new_graph() -> nx.DiGraph:
    """A graph without tasks."""
    import networkx as nx

    return nx.DiGraph()


def add_task(
    graph: nx.DiGraph, name: str, duration_s: float, *, after: Iterable[str] = (), needs: Iterable[str] = ()
) -> str:
    """Add a task that holds the resources `needs` for `duration_s`, each of them alone; its name."""
    graph.add_node(name, duration_s=duration_s, needs=frozenset(needs))
    graph.add_edges_from((before, name) for before in after)
    return name


def executed(graph: nx.DiGraph) -> dict[str, Span]:
    """When each task runs: list scheduling. Whenever one ends, those that can begin do, in order of adding."""
    env = simpy.Environment()
    run = _Run(env, graph)
    env.process(run.dispatch())
    env.run()
    return run.spans


def makespan_s(spans: dict[str, Span]) -> float:
    """When the last task ends [s]."""
    return max((span.end_s for span in spans.values()), default=0.0)


@dataclass(slots=True)
class _Run:
    env: simpy.Environment
    graph: nx.DiGraph
    spans: dict[str, Span] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    ended: simpy.Event | None = None

    def dispatch(self) -> Generator[simpy.Event, None, None]:
        waiting = list(self.graph.nodes)
        while waiting:
            for name in list(waiting):
                needs = self.graph.nodes[name]["needs"]
                if all(before in self.spans for before in self.graph.predecessors(name)) and not needs & self.held:
                    waiting.remove(name)
                    self.held |= needs
                    self.env.process(self.work(name))
            self.ended = self.env.event()
            yield self.ended
            yield self.env.timeout(0)  # all that ends now has ended

    def work(self, name: str) -> Generator[simpy.Event, None, None]:
        begin_s, task = self.env.now, self.graph.nodes[name]
        yield self.env.timeout(task["duration_s"])
        self.held -= task["needs"]
        self.spans[name] = Span(begin_s=begin_s, end_s=self.env.now)
        if self.ended is not None and not self.ended.triggered:
            self.ended.succeed()
