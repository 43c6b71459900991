"""The Python interface: load a scenario, then run, compare, serve, place, bound or sweep it; reproduce; open traces.

Every function returns a result that shows itself in notebooks and terminals (`moesim/shown.py`); numbers are those of
the command of the same name, which calls the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import moesim
from moesim.bounding import BoundResult
from moesim.comparing import ComparisonResult
from moesim.placing import PlacementResult
from moesim.reproducing import ReproductionResult
from moesim.scenario import Scenario
from moesim.shown import Shown
from moesim.stored import DifferenceResult, StoredResult, diff, read
from moesim.sweeping import Grid, SweepResult, Workers
from moesim.sweeping import sweep as swept
from moesim.tracing import TraceResult
from scenarios.catalog import find_paper, find_scenario, list_papers, list_traces
from scenarios.errors import ScenarioError, TraceError
from scenarios.loader import load_scenario, scenario_of
from scenarios.overrides import flow_text
from scenarios.placement_specs import PlacementSpec
from sim import run as engine
from sim.bound.bounds import bounds_of
from sim.bound.purchase import choose
from sim.place import place as placed
from sim.reproduce.claims import Reproduction, reproduced
from sim.session import Session
from sim.sweep.points import Axis
from traces.storage import load_trace

__all__ = [
    "BoundResult",
    "ComparisonResult",
    "DifferenceResult",
    "PlacementResult",
    "ReproductionResult",
    "Scenario",
    "Shown",
    "StoredResult",
    "SweepResult",
    "TraceResult",
    "Workers",
    "bound",
    "compare",
    "diff",
    "load",
    "place",
    "read",
    "reproduce",
    "run",
    "serve",
    "sweep",
    "trace",
]

Progress = engine.Progress
Source = str | Path | Mapping[str, Any]
"""A file, a shipped name, or a dict laid out as a file."""
Axes = Mapping[str, Iterable[Any]]
"""Paths of a scenario and the values that each takes."""


def load(
    source: Source,
    changes: Sequence[str] | Mapping[str, Any] = (),
    *,
    folder: str | Path = ".",
) -> Scenario:
    """The scenario of a file, a shipped name, or a dict laid out as a file, with other values where `changes` say so.

    changes  path -> value, as {"workload.steps": 8}; or what `--set` takes, as ["workload.steps=8"].
    folder   where relative paths of a dict start.

    Raises ScenarioError with one line for each problem, unknown models and nodes included.
    """
    if isinstance(source, Mapping):
        return Scenario(scenario_of(source, Path(folder), changes))
    return Scenario(load_scenario(find_scenario(str(source)), changes))


def _loaded(given: Scenario | Source) -> Scenario:
    """The scenario, loaded where it is not yet."""
    return given if isinstance(given, Scenario) else load(given)


def run(scenario: Scenario | Source, *, unfinished: Path | None = None) -> ComparisonResult:
    """The scenario's own plan, simulated: one table with one plan; for `unfinished` see `compare`."""
    scenario = _loaded(scenario)
    return ComparisonResult(engine.run(scenario.spec, scenario.folder, moesim.__version__, unfinished))


def compare(
    scenario: Scenario | Source, progress: Progress | None = None, *, unfinished: Path | None = None
) -> ComparisonResult:
    """Every plan of the scenario's `compare:` axes, ranked, one table a workload.

    unfinished  folder where a served load keeps what it has done: called again after an interruption, it goes on.
    """
    scenario = _loaded(scenario)
    return ComparisonResult(engine.compare(scenario.spec, scenario.folder, moesim.__version__, progress, unfinished))


def serve(scenario: Scenario | Source) -> ComparisonResult:
    """The scenario's own plan under the requests of its `serving:` section; `to_dataframe("requests")` has each.

    Raises ScenarioError where it has none.
    """
    scenario = _loaded(scenario)
    if scenario.spec.serving is None:
        raise ScenarioError(f"{scenario.spec.name}: no `serving:` section; add the requests, or use run")
    return run(scenario)


def place(
    scenario: Scenario | Source,
    file: str | Path | None = None,
    *,
    explain: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> PlacementResult:
    """The scenario's placement, solved, or read from `file` with the scenario's split; measured and judged.

    explain  also what binds, what would help, and whether EPLB does.
    told     hears what is being done.
    """
    scenario = _loaded(scenario)
    own = scenario.spec.placement
    if file is not None:
        kept = {name: getattr(own, name) for name in ("redundant", "split") if name in own.model_fields_set}
        own = PlacementSpec.model_validate(kept | {"file": str(Path(file).absolute())})
    spec = scenario.spec.model_copy(update={"placement": own})
    return PlacementResult(placed(spec, scenario.folder, moesim.__version__, explain=explain, told=told))


def bound(scenario: Scenario | Source, progress: Progress | None = None) -> BoundResult:
    """Throughput that no plan exceeds on the scenario's hardware; with `budget:` also the best purchase."""
    scenario = _loaded(scenario)
    session = Session(scenario.spec, scenario.folder)
    bounds = bounds_of(session, progress)
    choice = None if scenario.spec.budget is None else choose(scenario.spec, session, progress)
    return BoundResult(bounds, choice)


def sweep(
    scenario: Scenario | Source,
    axes: Axes,
    *,
    zipped: Axes | None = None,
    n_random: int | None = None,
    rank: str | None = None,
    workers: Workers | None = None,
) -> SweepResult:
    """Every combination of the axes, simulated: {"workload.tokens_per_device": [16, 64], "seed": range(4)}.

    zipped    axes that advance together.
    n_random  so many points of the grid, drawn by the scenario's seed.
    rank      metric that decides; by default goodput where limits are set, else tokens/s.
    workers   processes, and the folder in which points are kept; by default this process, and none.

    Raises ScenarioError for all problems of all axes before anything is simulated.
    """
    grid = Grid(axes=_axes(axes), zipped=_axes(zipped or {}), n_random=n_random)
    return swept(_loaded(scenario), grid, rank, workers or Workers())


def reproduce(*systems: str, limit: float = 0.35, progress: Progress | None = None) -> ReproductionResult:
    """Published results of the systems (by default all, which takes minutes) against predictions.

    limit  largest error of a claim without a stated reason.
    """
    paths = [find_paper(system) for system in systems] or [path for _, path in list_papers()]
    papers: list[Reproduction] = []
    for number, path in enumerate(paths):
        if progress is not None:
            progress(path.stem, number / len(paths))
        papers.append(reproduced(path, moesim.__version__))
    return ReproductionResult(tuple(papers), limit)


def trace(name: str | Path) -> TraceResult:
    """The routing trace of a file or a shipped name. Raises TraceError where there is none, or it cannot be read."""
    path = dict(list_traces()).get(str(name), Path(name))
    if not path.exists():
        shipped = ", ".join(known for known, _ in list_traces())
        raise TraceError(f"{name}: no such trace file, and none shipped of that name ({shipped})")
    return TraceResult(path.stem, load_trace(path))


def _axes(axes: Axes) -> list[Axis]:
    found = []
    for path, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ScenarioError(f"{path}: an axis is a list of values, not {values!r}")
        try:
            found.append(Axis(path, tuple(map(flow_text, values))))
        except ValueError as error:
            raise ScenarioError(f"{path}: {error}") from None
        if not found[-1].values:
            raise ScenarioError(f"{path}: the axis has no value")
    return found
