"""The Python interface: the numbers of the command, scenarios made in Python, and what notebooks show of results."""

from __future__ import annotations

import html
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import yaml

import moesim as package
from moesim.api import trace
from moesim.shown import Shown
from scenarios.loader import load_scenario
from tests.cli.command import SCENARIO, files_of
from tests.cli.conftest import Command

RESULTS: dict[str, Callable[[package.Scenario], Shown]] = {
    "run": package.run,
    "compare": package.compare,
    "place": package.place,
    "bound": package.bound,
}


@pytest.fixture
def scenario(folder: Path, monkeypatch: pytest.MonkeyPatch) -> package.Scenario:
    monkeypatch.chdir(folder)
    return package.load("tiny.yaml")


def without_times(content: dict[str, Any]) -> dict[str, Any]:
    """A result file without the time that a solver took on this machine."""
    content.get("placement", {}).pop("solve_time_s", None)
    return content


@pytest.mark.parametrize("name", ["run", "compare", "place", pytest.param("bound", marks=pytest.mark.slow)])
def test_numbers_are_those_of_the_command(moesim: Command, scenario: package.Scenario, name: str) -> None:
    done = moesim(name, "tiny.yaml", "--json", "-").succeeded()
    result = RESULTS[name](scenario)
    assert without_times(json.loads(result.json_text())) == without_times(json.loads(done.out))


@pytest.mark.slow
def test_a_folder_holds_what_the_command_writes(moesim: Command, scenario: package.Scenario, folder: Path) -> None:
    moesim("bound", "tiny.yaml", "--out", "command").succeeded()
    written = package.bound(scenario).save("python")
    wanted, found = files_of(folder / "command"), files_of(folder / "python")
    assert wanted == found
    assert (
        found.keys()
        == {path.name for path in written}
        == {"bound.json", "report.html", "bound-batch.png", "bound-context.png"}
    )


@pytest.mark.slow
def test_a_sweep_is_that_of_the_command(moesim: Command, scenario: package.Scenario, folder: Path) -> None:
    """Values of Python and their text are the same points, under the same keys: the second sweep simulates nothing."""
    axes = ["--set", "workload.tokens_per_device=4,8", "--set", "placement={solver: contiguous},{solver: greedy}"]
    moesim("sweep", "tiny.yaml", *axes, "--jobs", "1", "--out", "kept").succeeded()
    before = files_of(folder / "kept" / "points")
    grid = {"workload.tokens_per_device": (4, 8), "placement": [{"solver": "contiguous"}, {"solver": "greedy"}]}
    result = package.sweep(scenario, grid, workers=package.Workers(folder="kept"))
    assert json.loads(result.json_text()) == json.loads((folder / "kept" / "sweep.json").read_text())
    assert files_of(folder / "kept" / "points") == before
    alone = package.run(scenario.with_({"workload.tokens_per_device": 4, "placement.solver": "greedy"}))
    (point,) = [one for one in result.results if list(one["point"].values()) == ["4", "{solver: greedy}"]]
    assert point["metrics"] == alone.metrics
    table = pytest.importorskip("pandas").DataFrame(result.to_dataframe())
    assert set(table["workload.tokens_per_device"]) == {4, 8}
    assert table["tokens_per_s"].max() == result.best["metrics"]["tokens_per_s"]
    with pytest.raises(package.ScenarioError, match=r"workload\.stesp: unknown key"):
        package.sweep(scenario, {"workload.stesp": [1]})
    for axes_of_python, words in (({"seed": 3}, "is a list of values"), ({"seed": []}, "has no value")):
        with pytest.raises(package.ScenarioError, match=words):
            package.sweep(scenario, axes_of_python)  # type: ignore[arg-type]


# Scenarios in Python


def test_a_dict_is_a_scenario_as_its_file_is(scenario: package.Scenario) -> None:
    content = yaml.safe_load(SCENARIO)
    assert package.load(content).spec == scenario.spec == load_scenario(Path("tiny.yaml")).spec
    changes = {"workload.steps": 3, "placement": {"solver": "eplb", "redundant": 8}, "compare.placement.0.name": "one"}
    options = ["workload.steps=3", "placement={solver: eplb, redundant: 8}", "compare.placement.0.name=one"]
    changed = package.load("tiny.yaml", options).spec
    assert scenario.with_(changes).spec == package.load(content, changes).spec == changed != scenario.spec
    assert scenario.spec.workload.steps == 2, "the scenario itself stays as it is"


def test_problems_of_python_are_told_with_their_paths(scenario: package.Scenario) -> None:
    wrong: dict[str, Any] = {"name": "a", "modle": "b", "cluster": {"node": "h200-sxm-8", "nodes": 0}}
    with pytest.raises(package.ScenarioError) as error:
        package.load(wrong)
    assert str(error.value).splitlines()[0] == "4 problems in scenario:"
    assert "scenario cluster.nodes: must be greater than 0, got 0" in str(error.value)
    assert "scenario modle: unknown key (did you mean 'model'?)" in str(error.value)
    for changes, words in (
        ({"workload.stpes": 8}, r"^workload\.stpes: unknown key \(did you mean 'steps'\?\)$"),
        ({"cluster.node": "h201-sxm-8"}, r"^cluster\.node: no node card .* \(did you mean 'h200-sxm-8'\?\)"),
        ({"seed": object()}, "^seed: object has no place in a scenario"),
        ({"seed.": 1}, "such as cluster.nodes$"),
        ({"model.name": 1}, "model is a single value"),
    ):
        with pytest.raises(package.MoesimError, match=words):
            scenario.with_(changes)


def test_a_scenario_without_requests_serves_none(scenario: package.Scenario) -> None:
    with pytest.raises(package.ScenarioError, match="no `serving:` section"):
        package.serve(scenario)


@pytest.mark.slow
def test_every_request_of_a_served_load_is_a_row(scenario: package.Scenario) -> None:
    pytest.importorskip("pandas")
    requests = {"requests_per_s": 50, "n": 40, "input_tokens": 20, "output_tokens": 4}
    served = package.serve(scenario.with_({"serving": {"requests": requests}, "workload.context_tokens": 64}))
    rows = served.to_dataframe("requests")
    assert len(rows) == 40
    assert rows["ttft_s"].mean() == pytest.approx(served.metrics["ttft_s.mean"])
    assert (rows["e2e_s"] >= rows["ttft_s"]).all()


# What is shown


def test_a_table_holds_every_plan_and_number(scenario: package.Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    result = package.compare(scenario)
    table = result.to_dataframe()
    for row, entry in zip(table.to_dict("records"), result.as_json()["results"], strict=True):
        assert (row["plan"], row["gain"]) == (entry["name"], entry["gain"])
        assert {name: row[name] for name in entry["metrics"]} == entry["metrics"]
    assert result.best.name == table["plan"][0]
    with pytest.raises(package.MoesimError, match=r"no table 'plan' \(did you mean 'plans'\?\)"):
        result.to_dataframe("plan")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(package.MoesimError, match=r"pip install 'moesim\[notebook\]'"):
        result.to_dataframe()


def test_notebooks_and_terminals_show_the_same(moesim: Command, scenario: package.Scenario) -> None:
    """Every word of the command's table stands in the HTML, the best plan in bold; names are escaped."""
    evil = "<script>"
    result = package.compare(scenario.with_({"compare.placement.0.name": evil}))
    shown = result._repr_html_()
    words = html.unescape(re.sub(r"<[^>]*>", " ", shown)).split()
    assert sorted(words) == sorted(word for word in repr(result).split() if set(word) != {"─"})
    assert evil not in shown and html.escape(evil) in shown
    assert len(re.findall('<tr style="font-weight:bold">', shown)) == 1
    assert repr(package.compare(scenario)).split() == moesim("compare", "tiny.yaml").out.split()


def test_figures_keep_their_style_wherever_they_are_drawn(scenario: package.Scenario) -> None:
    """Ticks come into being when a figure is drawn, here by a user with a style of his own."""
    result = package.compare(scenario)
    figure = result.plot("imbalance")
    with mpl.rc_context({"xtick.labelsize": 20}):
        figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert {label.get_fontsize() for label in figure.axes[0].get_xticklabels()} == {7.5}
    picture, facts = figure._repr_png_()
    assert picture.startswith(b"\x89PNG") and facts["width"] == 720
    with pytest.raises(package.MoesimError, match=r"no figure 'timelin' \(did you mean 'timeline'\?\)"):
        result.plot("timelin")


def test_a_best_plan_of_two_workloads_is_not_guessed(scenario: package.Scenario) -> None:
    result = package.compare(scenario.with_({"compare.workload": [{}, {"tokens_per_device": 16}]}))
    with pytest.raises(package.MoesimError, match=r"tables\[i\]"):
        _ = result.best
    assert "2-step-time" in result.drawings()


def test_a_trace_is_what_the_command_says(moesim: Command) -> None:
    opened = trace("moesim-20m-decode")
    assert opened.as_json() == json.loads(moesim("trace", "info", "moesim-20m-decode", "--json", "-").out)
    assert opened.routing.n_experts == 64
    with pytest.raises(package.TraceError, match="no such trace file"):
        package.trace("absent.npz")


def test_a_scenario_may_be_given_by_its_file(scenario: package.Scenario) -> None:
    del scenario  # its folder is the present one
    assert package.run("tiny.yaml").metrics == package.run(package.load("tiny.yaml")).metrics
    assert package.sweep("tiny.yaml", {"seed": [1, 2]}).results[0]["metrics"]


def test_an_unknown_trace_is_told_with_those_that_are_shipped() -> None:
    with pytest.raises(package.TraceError, match="nothing: no such trace file, and none shipped of that name"):
        trace("nothing")
