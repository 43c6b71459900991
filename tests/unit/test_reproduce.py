"""Reproductions: arithmetic over metrics, units, cases, fits and errors, against values worked out by hand."""

from functools import cache
from pathlib import Path

import pytest

from docs.reproduced import PAGE, lines_of
from scenarios.catalog import list_papers
from scenarios.errors import ScenarioError
from scenarios.loader import load_spec
from scenarios.paper_specs import PaperSpec
from scenarios.published import read_published
from sim.reproduce.cases import Cases
from sim.reproduce.claims import Reproduction, as_json, missed, reproduced
from sim.reproduce.expressions import evaluate
from sim.reproduce.plots import reproductions_figure
from sim.reproduce.tables import claims_table, constants_table, system_errors

PAPER = """\
system: tiny
title: a paper made up for the tests
source: nowhere
scenario:
  name: tiny
  model: {card: olmoe-1b-7b, n_layers: 1}
  cluster: {node: h200-sxm-8, inter_bandwidth: 10 GB/s}
  workload: {synthetic: {tokens: 512, sequence_tokens: 32}, tokens_per_device: 8, steps: 2}
cases:
  one: {}
  slow: {of: one, set: {schedule.step_overhead: 5 ms}}
  slower: {of: slow, set: {schedule.step_overhead: 10 ms}}
  full: {set: {memory.reserve: 0.999}}
FITS
claims:
  - {id: gain, quantity: speedup, config: "", published: 1, predict: feasible(one), source: nobody}
  - {id: order, quantity: order, config: "", published: [slower, one, slow], rank: step_time_s, source: nobody}
  - {id: fits, quantity: memory, config: "", published: OOM, predict: feasible(full), source: nobody}
  - {id: limit, quantity: s, config: s, published: 1 ms, relation: at-least, predict: step_time_s(slow), source: who}
  - {id: half, quantity: share, config: "", published: 50 %, predict: feasible(one), source: nobody}
"""
FIT = """\
fits:
  - {path: schedule.step_overhead, case: one, cases: [one], metric: step_time_s, published: 7 ms,
     range: [0.01 ms, 20 ms], source: nobody}
"""
BANDWIDTH = """\
fits:
  - {path: cluster.inter_bandwidth, case: one, metric: breakdown_s.transfer, published: 1 ms,
     range: [0.001 GB/s, 50 GB/s], source: nobody}
"""


def paper(folder: Path, fits: str = "") -> Path:
    path = folder / "tiny.yaml"
    path.write_text(PAPER.replace("FITS\n", fits))
    return path


def test_arithmetic_over_metrics() -> None:
    values = {("a.b", "x"): 6.0, ("c", "y"): 1.5}
    assert evaluate("2 * a.b(x) / c(y) - -1 + (3 - 1)", lambda name, case: values[name, case]) == 11.0
    assert evaluate("min(a.b(x), c(y) * 2, 7)", lambda name, case: values[name, case]) == 3.0


@pytest.mark.parametrize(
    "text", ["a(x", "a", "__import__('os')", "a(x) ** 2", "a(x, y)", "a(x) if 1 else 2", "'a'", "1 / 0"]
)
def test_nothing_but_arithmetic_is_evaluated(text: str) -> None:
    with pytest.raises(ScenarioError):
        evaluate(text, lambda _name, _case: 1.0)


@pytest.mark.parametrize(("text", "value"), [("189.1 ms", 0.1891), ("33.7 %", 0.337), (1.51, 1.51), ("2x", 2.0)])
def test_published_numbers_have_units(text: str | float, value: float) -> None:
    assert read_published(text).value == pytest.approx(value)


@pytest.mark.parametrize("text", ["fast", "3 furlongs", "nan", True])
def test_other_words_are_no_published_numbers(text: str | bool) -> None:
    with pytest.raises(ValueError, match=r"number|unit"):
        read_published(text)


def test_errors_of_claims(tmp_path: Path) -> None:
    found = reproduced(paper(tmp_path), "0")
    rows = {row.claim.id: row for row in found.rows}
    assert rows["gain"].error == 0
    assert rows["order"].predicted == ("one", "slow", "slower")
    assert rows["order"].error == pytest.approx(2 / 3)  # of three pairs, slow before slower alone is as published
    assert (rows["fits"].predicted, rows["fits"].error) == (0, 0)
    assert rows["limit"].error == 0
    assert rows["limit"].predicted > 5
    assert rows["half"].predicted == pytest.approx(100)
    assert rows["half"].error == pytest.approx(1)
    assert {row.claim.id for row in missed(found.rows, 0.35)} == {"order", "half"}
    told = system_errors("tiny", found.rows, 0.35)
    assert told.cells() == ("tiny", "4", "0.0%", "3", "0 of 1")
    assert len(claims_table(found.rows).rows) == 5
    figure = reproductions_figure([found], 0.35)
    assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()] == ["tiny"]


def test_a_grid_is_a_mean_over_all_combinations_of_its_axes(tmp_path: Path) -> None:
    """Four points with overheads of 1 and 2 ms in steps of two layouts; the fastest of two cases counts in each."""
    path = paper(tmp_path)
    grid = """\
grids:
  few: [[{schedule.step_overhead: 1 ms}, {schedule.step_overhead: 2 ms}], [{seed: 0}, {seed: 1}]]
"""
    claim = """\
  - {id: mean, quantity: time, config: "", published: 1.5 ms, grid: few, source: nobody,
     predict: "min(breakdown_s.host(one), 5 * breakdown_s.host(one))"}
"""
    path.write_text(path.read_text().replace("claims:\n", grid + "claims:\n") + claim)
    found = reproduced(path, "0")
    assert found.rows[-1].predicted == pytest.approx(1.5)
    path.write_text(path.read_text().replace("grid: few", "grid: fewer"))
    with pytest.raises(ScenarioError, match="fewer"):
        reproduced(path, "0")


def test_constants_say_what_was_fitted_and_what_the_scenario_states(tmp_path: Path) -> None:
    """A bandwidth of the scenario is `assumed`; where a fit decides it, it stands among the fitted numbers instead."""
    stated = reproduced(two_nodes(tmp_path, ""), "0")
    fitted = reproduced(two_nodes(tmp_path, BANDWIDTH), "0")
    assert [(one.value, one.kind) for one in stated.constants if one.source == "scenario"] == [
        ("card", "assumed"),  # the number of layers
        ("1e+10", "assumed"),
    ]
    told = {one.name: one for one in fitted.constants if one.kind == "fitted"}
    assert list(told) == ["cluster.inter_bandwidth"]
    assert told["cluster.inter_bandwidth"].source == "breakdown_s.transfer of one = 1 ms: nobody"
    assert [one.value for one in fitted.constants if one.source == "scenario"] == ["card"]
    some = reproduced(paper(tmp_path, FIT), "0")  # decides a number of case `one` alone
    on_fit = {row.claim.id for row in some.rows if row.fitted_on != "nothing"}
    assert on_fit == {row.claim.id for row in some.rows if row.claim.id not in ("fits", "limit")}
    assert "fitted" in {entry["kind"] for entry in as_json([fitted])["constants"]}
    assert len(constants_table([fitted]).rows) == len({one.kind for one in fitted.constants})


def two_nodes(folder: Path, fits: str) -> Path:
    """The paper on two nodes."""
    path = paper(folder, fits)
    path.write_text(path.read_text().replace("inter_bandwidth: 10 GB/s", "nodes: 2, inter_bandwidth: 10 GB/s"))
    return path


def test_a_fit_meets_its_number_in_its_cases_alone(tmp_path: Path) -> None:
    cases = Cases(load_spec(paper(tmp_path, FIT), PaperSpec), tmp_path, "0")
    before = cases.metric("step_time_s", "slow")
    cases.fit()
    assert cases.metric("step_time_s", "one") == pytest.approx(7e-3, rel=1e-3)
    assert cases.metric("step_time_s", "slow") == before


def test_a_range_without_a_solution_is_an_error(tmp_path: Path) -> None:
    cases = Cases(load_spec(paper(tmp_path, FIT.replace("7 ms", "70 ms")), PaperSpec), tmp_path, "0")
    with pytest.raises(ScenarioError, match="never 70 ms"):
        cases.fit()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("of: slow, ", "of: slower, ", "starts from itself"),
        ("of: slow, ", "of: fast, ", "not in the file"),
        ("step_time_s(slow)", "step_time_s(fast)", "no case 'fast'"),
        ("step_time_s(slow)", "speed(slow)", "no metric 'speed'"),
        ("{memory.reserve: 0.999}", "{memory.reserves: 0.9}", "memory.reserves"),
    ],
)
def test_contradictions_are_errors(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = paper(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ScenarioError, match=message):
        reproduced(path, "0")


@pytest.mark.parametrize("name", [name for name, _ in list_papers()])
def test_shipped_papers_hold_together(name: str) -> None:
    found = load_spec(dict(list_papers())[name], PaperSpec)
    assert found.system == name
    assert len({claim.id for claim in found.claims}) == len(found.claims)
    values = {case: 1.0 + 1.1**place for place, case in enumerate(found.cases)}
    for claim in found.claims:
        if claim.predict is not None:
            evaluate(claim.predict, lambda metric, case: values[case] * len(metric))
        assert set(claim.order) <= set(found.cases)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in list_papers()])
def test_claims_that_are_far_off_say_why(name: str) -> None:
    assert [row.claim.id for row in missed(shipped(name).rows, 0.35)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in list_papers()])
def test_the_page_shows_what_is_reproduced(name: str) -> None:
    """`make reproductions` writes the table anew."""
    assert set(lines_of([shipped(name)])) <= set(PAGE.read_text().splitlines())


@cache
def shipped(name: str) -> Reproduction:
    """A shipped paper, reproduced once for all tests."""
    return reproduced(dict(list_papers())[name], "0")
