"""Sweeps: a grid of scenarios in parallel, done once each, and the result that says what it shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.box
import rich.table
from rich.text import Text

import moesim
from moesim.pages import About
from moesim.scenario import Scenario
from moesim.shown import Part, Rows, Shown, as_parts, quiet_lines
from scenarios.errors import MoesimError, ScenarioError
from scenarios.files import check_folder, write_text
from scenarios.loader import changed
from scenarios.yaml_source import parse_yaml
from sim.result import SCHEMA
from sim.sweep import findings, store
from sim.sweep.parquet import write_parquet
from sim.sweep.points import Axis, Point, overrides_of, points_of
from sim.sweep.store import Result
from sim.sweep.workers import Task, in_processes, on_ray
from sim.tables import shown_metric
from sim.wording import shown_percent

if TYPE_CHECKING:
    from sim.figure import Figure

SHOWN = 15
Say = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is swept: axes that are all combined, axes that advance together, how many points are drawn of it."""

    axes: Sequence[Axis]
    zipped: Sequence[Axis] = ()
    n_random: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who computes a sweep, and where points are kept.

    jobs    processes: 1 is this one, None one a core. A script that asks for several must guard its own start by
            `if __name__ == "__main__":`, since they import it.
    folder  points are kept in `folder/points`, and those that are there are not simulated again; None keeps nothing.
    ray     address of a Ray cluster instead of processes.
    fresh   simulate what is kept, too.
    say     hears of progress: what is being done, and the share that is done.
    """

    jobs: int | None = 1
    folder: str | Path | None = None
    ray: str | None = None
    fresh: bool = False
    say: Say | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SweepResult(Shown):
    """Every point of a grid: `results` in its order, `best` by `metric`."""

    scenario: str
    results: tuple[Result, ...]
    metric: str

    @property
    def best(self) -> Result:
        """The best point: its `point` (path -> value), `plan` and `metrics`."""
        return self.ranked[0]

    @property
    def ranked(self) -> list[Result]:
        """Points that could be simulated, the best first."""
        return findings.ranked(self.results, self.metric)

    def as_json(self) -> dict[str, Any]:
        """The file sweep.json."""
        effects = findings.effects(self.results, self.metric)
        return {
            "moesim": moesim.__version__,
            "schema": SCHEMA,
            "scenario": self.scenario,
            "ranked_by": self.metric,
            "results": [{"name": result.get("plan", ""), **result} for result in self.results],
            "effects": [{"path": effect.path, "means": effect.means} for effect in effects],
            "front": [result["key"] for result in findings.front(self.results)],
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write report.html, points.csv, points.parquet where pyarrow is there, sweep.json, and the figures."""
        target, question = Path(folder), f"Which points of the grid are best by {self.metric}, and which axes matter?"
        about = About(title=self.scenario, question=question, version=moesim.__version__, file="sweep.json")
        written = self.save_page(target, about)
        write_text(findings.csv_text(self.results), target / "points.csv")
        has_parquet = write_parquet(findings.flat(self.results), target / "points.parquet")
        return [target / "points.csv", *[target / "points.parquet"] * has_parquet, *written]

    def parts(self) -> Iterator[Part]:
        """The best points, what every axis does, and what cannot be."""
        yield self._best_table()
        n_more = len(self.ranked) - SHOWN
        if n_more > 0:
            yield from quiet_lines([f"{n_more} more points"])
        for effect in findings.effects(self.results, self.metric):
            if len(effect.means) > 1:
                means = [f"{value}: {shown_metric(self.metric, mean)}" for value, mean in effect.means.items()]
                moved = f"{effect.path} moves {self.metric} by {shown_percent(effect.span)}"
                yield Text(f"{moved} ({', '.join(means)})")
        failed = [result for result in self.results if "error" in result]
        yield from quiet_lines(f"cannot be: {result['point']}: {result['error']}" for result in failed[:3])
        if failed:
            why = f"{len(failed)} of {len(self.results)} points cannot be simulated; points.csv says why"
            yield from as_parts([why])

    def frames(self) -> Mapping[str, Callable[[], Rows]]:
        """`points`: values, metrics and errors of all; `effects`: the mean metric by the values of every axis."""
        return {"points": self._points, "effects": self._effects}

    def drawings(self) -> dict[str, Callable[[], Figure | None]]:
        """`effects` of the axes, the `map` of the two largest, `parallel` axes, the `front` of speed and throughput."""
        from sim.sweep import plot

        return {
            "effects": partial(plot.effects_figure, self.results, self.metric),
            "map": partial(plot.map_figure, self.results, self.metric),
            "parallel": partial(plot.parallel_figure, self.results, self.metric),
            "front": partial(plot.front_figure, self.results),
        }

    def _points(self) -> Rows:
        rows = zip(self.results, findings.flat(self.results), strict=True)
        return [
            {**row, **{path: _read(text) for path, text in result["point"].items()}, "plan": result.get("plan", "")}
            for result, row in rows
        ]

    def _effects(self) -> Rows:
        return [
            {"path": effect.path, "value": _read(value), self.metric: mean}
            for effect in findings.effects(self.results, self.metric)
            for value, mean in effect.means.items()
        ]

    def _best_table(self) -> rich.table.Table:
        best, paths = self.ranked, list(self.results[0]["point"])
        title = f"{len(best)} points, best {self.metric} first"
        table = rich.table.Table(title=title, box=rich.box.HORIZONTALS, title_justify="left")
        for path in paths:
            ends = [other.rpartition(".")[2] for other in paths]
            name = path.rpartition(".")[2]
            table.add_column(Text(name if ends.count(name) == 1 else path), overflow="fold")
        extra = (name for name in ("step_time_s", "memory_bytes.peak") if name in best[0]["metrics"])
        shown = dict.fromkeys([self.metric, *extra])
        for name in shown:
            table.add_column(Text(name), justify="right")
        for result in best[:SHOWN]:
            cells = [shown_metric(name, result["metrics"][name]) for name in shown]
            table.add_row(*(Text(result["point"][path]) for path in paths), *cells)
        return table


def sweep(scenario: Scenario, grid: Grid, rank: str | None, workers: Workers) -> SweepResult:
    """What is missing of a grid, simulated, with what is kept; ranked by `rank`, else by goodput or tokens/s.

    Raises ScenarioError for all problems of all axes before anything is simulated, and for a metric that no point has.
    """
    points = points_of(grid.axes, grid.zipped, grid.n_random, scenario.spec.seed)
    results = tuple(_results(_tasks(scenario, points), workers))
    metric = rank or _usual_metric(results)
    if not findings.ranked(results, metric):
        known = ", ".join(sorted({name for result in findings.done(results) for name in result["metrics"]}))
        raise ScenarioError(f"rank {metric}: no point has such a metric; they have {known}")
    return SweepResult(scenario=scenario.spec.name, results=results, metric=metric)


def _tasks(scenario: Scenario, points: Sequence[Point]) -> list[Task]:
    """Every point as a checked scenario; all problems of all axes are reported before anything is simulated."""
    base = scenario.folder.absolute()
    tasks, problems = [], dict[str, None]()
    for point in points:
        try:
            loaded = changed(scenario.loaded, overrides_of(point))
        except ScenarioError as error:
            problems |= dict.fromkeys(str(error).splitlines())
            continue
        tasks.append(Task(key=store.key_of(loaded.spec, base), point=point, spec=loaded.spec, base=base))
    if problems:
        raise ScenarioError("\n".join(problems))
    return tasks


def _results(tasks: Sequence[Task], workers: Workers) -> list[Result]:
    found: dict[str, Result] = {}
    kept = None
    if workers.folder is not None:
        check_folder(Path(workers.folder))
        kept = Path(workers.folder) / "points"
        kept.mkdir(parents=True, exist_ok=True)
        known = {} if workers.fresh else {task.key: store.load(kept, task.key) for task in tasks}
        found = {key: result for key, result in known.items() if result is not None}
    missing = list({task.key: task for task in tasks if task.key not in found}.values())
    if missing:
        jobs = min(workers.jobs or os.cpu_count() or 1, len(missing))
        batches = on_ray(missing, kept, workers.ray) if workers.ray else in_processes(missing, kept, jobs)
        n_before = len(found)
        for batch in batches:
            found |= {result["key"]: result for result in batch}
            if workers.say is not None:
                workers.say(f"{len(found)} of {len(tasks)} points", (len(found) - n_before) / len(missing))
    return [found[task.key] | {"point": dict(task.point)} for task in tasks]


def _usual_metric(results: Sequence[Result]) -> str:
    known = findings.done(results)
    if not known:
        raise MoesimError("no point of the sweep can be simulated; the first says: " + results[0]["error"])
    return next(name for name in ("goodput_tokens_per_s", "tokens_per_s") if name in known[0]["metrics"])


def _read(text: str) -> object:
    """A value of an axis: a number or a truth value where it is one, else its text."""
    value = parse_yaml(text).value
    return value if isinstance(value, bool | int | float) else text
