"""`moesim sweep`: a grid of scenarios in parallel, done once each, and one page of what it shows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.box
import rich.table
from rich.console import Console
from rich.text import Text

import moesim
from moesim.progress import progress
from scenarios.errors import MoesimError, ScenarioError
from scenarios.files import check_folder, whole_file, write_or_print, write_text
from scenarios.loader import LoadedScenario, changed
from sim.result import SCHEMA
from sim.sweep import findings, store
from sim.sweep.points import Point, overrides_of, parse_axis, points_of
from sim.sweep.store import Result
from sim.sweep.workers import Task, in_processes, on_ray
from sim.tables import shown_metric
from sim.wording import shown_percent

SHOWN = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is swept: axes as `path=a,b,c`, some of which advance together, and how many points are drawn of it."""

    axes: Sequence[str]
    zipped: Sequence[str] = ()
    n_random: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """How it is computed: processes, or the address of a Ray cluster; `fresh`: also what is done already."""

    jobs: int | None = None
    ray: str | None = None
    fresh: bool = False


def show(
    scenario: LoadedScenario, grid: Grid, means: Means, rank: str | None, targets: tuple[Path, str | None], quiet: bool
) -> None:
    """Simulate what is missing of a grid, write its page to the folder of `targets`, print what it shows."""
    folder, json_target = targets
    check_folder(folder)
    kept = folder / "points"
    kept.mkdir(parents=True, exist_ok=True)
    axes, zipped = [parse_axis(text) for text in grid.axes], [parse_axis(text) for text in grid.zipped]
    points = points_of(axes, zipped, grid.n_random, scenario.spec.seed)
    tasks = _tasks(scenario, points)
    results = _all_results(tasks, kept, means, quiet=quiet)
    metric = rank or _usual_metric(results)
    written = _write(results, metric, folder, scenario.spec.name)
    if json_target is not None:
        write_or_print((folder / "sweep.json").read_text(), json_target)
    if not quiet and json_target != "-":
        _print(results, metric, written)


def _tasks(scenario: LoadedScenario, points: Sequence[Point]) -> list[Task]:
    """Every point as a checked scenario; all problems of all axes are reported before anything is simulated."""
    base = scenario.path.parent.absolute()
    tasks, problems = [], dict[str, None]()
    for point in points:
        try:
            loaded = changed(scenario, overrides_of(point))
        except ScenarioError as error:
            problems |= dict.fromkeys(str(error).splitlines())
            continue
        tasks.append(Task(key=store.key_of(loaded.spec, base), point=point, spec=loaded.spec, base=base))
    if problems:
        raise ScenarioError("\n".join(problems))
    return tasks


def _all_results(tasks: Sequence[Task], kept: Path, means: Means, *, quiet: bool) -> list[Result]:
    found = {} if means.fresh else {task.key: known for task in tasks if (known := store.load(kept, task.key))}
    missing = list({task.key: task for task in tasks if task.key not in found}.values())
    with progress(f"{len(missing)} of {len(tasks)} points to simulate", quiet=quiet) as say:
        if missing:
            jobs = min(means.jobs or os.cpu_count() or 1, len(missing))
            batches = on_ray(missing, kept, means.ray) if means.ray else in_processes(missing, kept, jobs)
            n_before = len(found)
            for batch in batches:
                found |= {result["key"]: result for result in batch}
                if say is not None:
                    say(f"{len(found)} of {len(tasks)} points", (len(found) - n_before) / len(missing))
    return [found[task.key] | {"point": dict(task.point)} for task in tasks]


def _usual_metric(results: Sequence[Result]) -> str:
    known = findings.done(results)
    if not known:
        raise MoesimError("no point of the sweep can be simulated; the first says: " + results[0]["error"])
    return next(name for name in ("goodput_tokens_per_s", "tokens_per_s") if name in known[0]["metrics"])


def _write(results: Sequence[Result], metric: str, folder: Path, name: str) -> list[Path]:
    """points.csv, points.parquet where pyarrow is there, sweep.json, and the figures."""
    from sim.plots import png_bytes
    from sim.sweep import plot

    if not findings.ranked(results, metric):
        known = ", ".join(sorted({name for result in findings.done(results) for name in result["metrics"]}))
        raise ScenarioError(f"--rank {metric}: no point has such a metric; they have {known}")
    write_text(findings.csv_text(results), folder / "points.csv")
    content: dict[str, Any] = {
        "moesim": moesim.__version__,
        "schema": SCHEMA,
        "scenario": name,
        "ranked_by": metric,
        "results": [{"name": result.get("plan", ""), **result} for result in results],
        "effects": [{"path": effect.path, "means": effect.means} for effect in findings.effects(results, metric)],
        "front": [result["key"] for result in findings.front(results)],
    }
    write_text(json.dumps(content, indent=2) + "\n", folder / "sweep.json")
    written = [folder / "points.csv", folder / "sweep.json"]
    written += _parquet(results, folder / "points.parquet")
    figures = {
        "map": plot.map_figure(results, metric),
        "effects": plot.effects_figure(results, metric),
        "front": plot.front_figure(results),
    }
    for title, figure in figures.items():
        if figure is not None:
            written.append(folder / f"{title}.png")
            with whole_file(written[-1]) as temporary:
                temporary.write_bytes(png_bytes(figure))
    return written


def _parquet(results: Sequence[Result], path: Path) -> list[Path]:
    from sim.sweep.parquet import write_parquet

    return [path] if write_parquet(findings.flat(results), path) else []


def _print(results: Sequence[Result], metric: str, written: Sequence[Path]) -> None:
    console = Console()
    best = findings.ranked(results, metric)
    paths = list(results[0]["point"])
    table = rich.table.Table(
        title=f"{len(best)} points, best {metric} first", box=rich.box.HORIZONTALS, title_justify="left"
    )
    for path in paths:
        ends = [other.rpartition(".")[2] for other in paths]
        name = path.rpartition(".")[2]
        table.add_column(Text(name if ends.count(name) == 1 else path), overflow="fold")
    shown = [metric, *(name for name in ("step_time_s", "memory_bytes.peak") if name in best[0]["metrics"])]
    for name in shown:
        table.add_column(Text(name), justify="right")
    for result in best[:SHOWN]:
        cells = [shown_metric(name, result["metrics"][name]) for name in shown]
        table.add_row(*(Text(result["point"][path]) for path in paths), *cells)
    console.print(table)
    if len(best) > SHOWN:
        console.print(f"{len(best) - SHOWN} more in {written[0]}", style="dim", highlight=False)
    for effect in findings.effects(results, metric):
        if len(effect.means) > 1:
            means = ", ".join(f"{value}: {shown_metric(metric, mean)}" for value, mean in effect.means.items())
            console.print(f"{effect.path} moves {metric} by {shown_percent(effect.span)} ({means})", highlight=False)
    for result in [result for result in results if "error" in result][:3]:
        console.print(Text(f"cannot be: {result['point']}: {result['error']}"), style="dim")
    failed = sum("error" in result for result in results)
    if failed:
        console.print(f"{failed} of {len(results)} points cannot be simulated; points.csv says why", highlight=False)
    console.print(f"Written: {', '.join(str(path) for path in written)}", highlight=False, soft_wrap=True)
