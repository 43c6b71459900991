"""The scenario of the Python interface: checked values, from a file or from Python, and copies with other values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwmodels.cluster import build_cluster
from hwmodels.library import cards_with
from scenarios.catalog import find_model
from scenarios.errors import MoesimError
from scenarios.loader import LoadedScenario, changed
from scenarios.specs import ScenarioSpec


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """A checked scenario, as `load` gives it.

    Raises ScenarioError with one line for each problem, models and nodes that cannot be had included.
    """

    loaded: LoadedScenario = field(repr=False)

    def __post_init__(self) -> None:
        _check_cards(self.loaded)

    @property
    def spec(self) -> ScenarioSpec:
        """All values, those that the scenario leaves out included."""
        return self.loaded.spec

    @property
    def folder(self) -> Path:
        """Where relative paths in the scenario start."""
        return self.loaded.path.parent

    def with_(self, changes: Mapping[str, Any]) -> Scenario:
        """The same with other values, by path: `{"workload.steps": 8, "placement": {"solver": "eplb"}}`.

        Raises ScenarioError with one line for each problem.
        """
        return Scenario(changed(self.loaded, changes))

    def __repr__(self) -> str:
        return f"<{'; '.join(f'{name}: {value}' for name, value in self._summary().items())}>"

    def _repr_html_(self) -> str:
        from rich.table import Table
        from rich.text import Text

        from moesim.html_parts import html_of

        table = Table("", "")
        for name, value in self._summary().items():
            table.add_row(Text(name), Text(value))
        return html_of([table])

    def _summary(self) -> dict[str, str]:
        spec = self.spec
        axes = {} if spec.compare is None else {name: len(entries) for name, entries in spec.compare if entries}
        model = spec.model if isinstance(spec.model, str) else f"{spec.model.get('card', 'of the scenario')}, changed"
        compared = ", ".join(f"{count} x {name}" for name, count in axes.items())
        return {
            "scenario": spec.name,
            "model": model,
            "cluster": f"{spec.cluster.nodes} x {spec.cluster.node}",
            "workload": f"{spec.workload.phase}, {spec.workload.tokens_per_device} tokens per device",
            **({"compare": compared} if compared else {}),
            **({} if spec.serving is None else {"serving": "requests under load"}),
        }


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
