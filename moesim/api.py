"""The Python interface: load a scenario, run it, compare its plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import moesim
from hwmodels.cluster import build_cluster
from hwmodels.library import cards_with
from scenarios.catalog import find_model, find_scenario
from scenarios.errors import MoesimError
from scenarios.loader import LoadedScenario, load_scenario
from sim import run as engine
from sim.result import Comparison


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> LoadedScenario:
    """The scenario of a file or shipped name, changed by overrides such as "workload.steps=8".

    Raises ScenarioError with one line for each problem, unknown models and nodes included.
    """
    scenario = load_scenario(find_scenario(str(name_or_path)), overrides)
    _check_cards(scenario)
    return scenario


def run(scenario: LoadedScenario, unfinished: Path | None = None) -> Comparison:
    """The scenario's own plan, simulated: one table with one row; for `unfinished` see `compare`."""
    return engine.run(scenario.spec, scenario.path.parent, moesim.__version__, unfinished)


def compare(
    scenario: LoadedScenario, progress: engine.Progress | None = None, unfinished: Path | None = None
) -> Comparison:
    """Every plan of the scenario's `compare:` axes, ranked, one table a workload.

    unfinished  folder where a served load keeps what it has done: called again after an interruption, it goes on.
    """
    return engine.compare(scenario.spec, scenario.path.parent, moesim.__version__, progress, unfinished)


def _check_cards(scenario: LoadedScenario) -> None:
    """Raise ScenarioError at its line where the scenario names a model or machine that cannot be had."""
    base, cluster = scenario.path.parent, scenario.spec.cluster
    cards: dict[tuple[str, ...], Callable[[], object]] = {
        ("model",): lambda: find_model(scenario.spec.model, base),
        ("cluster", "cards"): lambda: cluster.cards and cards_with(base / cluster.cards),
        ("cluster", "node"): lambda: build_cluster(cluster.model_copy(update={"kernels": None}), base),
        ("cluster", "kernels"): lambda: build_cluster(cluster, base),
    }
    for keys, find in cards.items():
        try:
            find()
        except MoesimError as error:
            raise scenario.error(keys, str(error)) from None
