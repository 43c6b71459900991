"""Points, the store of what is done, and what results show."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.errors import ScenarioError
from scenarios.loader import changed, load_scenario
from sim.result import is_cost
from sim.run import run
from sim.sweep import findings, store
from sim.sweep.points import overrides_of, parse_axis, points_of
from sim.sweep.workers import Task, in_processes

SCENARIO = """
name: swept
model: {card: olmoe-1b-7b, n_layers: 2}
cluster: {node: h100-sxm-8, devices_per_node: 2}
workload: {synthetic: {tokens: 2048}, tokens_per_device: 8, steps: 2}
"""


@pytest.mark.parametrize(
    ("option", "path", "values"),
    [
        ("cluster.nodes=1,2, 4", "cluster.nodes", ("1", "2", "4")),
        (
            "placement={solver: eplb, redundant: 8},{solver: greedy}",
            "placement",
            ("{solver: eplb, redundant: 8}", "{solver: greedy}"),
        ),
        ("a.b=[1, 2],'x, y'", "a.b", ("[1, 2]", "'x, y'")),
        ("seed=3", "seed", ("3",)),
    ],
)
def test_axes(option: str, path: str, values: tuple[str, ...]) -> None:
    axis = parse_axis(option)
    assert (axis.path, axis.values) == (path, values)


def test_points_are_all_combinations_or_a_choice_of_them() -> None:
    axes = [parse_axis("a=1,2,3"), parse_axis("b=x,y")]
    zipped = [parse_axis("c=5,6"), parse_axis("d=7,8")]
    points = points_of(axes, zipped, None, 0)
    want = [(("a", a), ("b", b), ("c", c), ("d", d)) for a, b, (c, d) in product("123", "xy", (("5", "7"), ("6", "8")))]
    assert points == want
    some = points_of(axes, zipped, 5, 0)
    assert len(set(some)) == 5
    assert set(some) <= set(want)
    assert some == points_of(axes, zipped, 5, 0) != points_of(axes, zipped, 5, 1)
    many = [parse_axis(f"p{i}={','.join(map(str, range(100)))}") for i in range(8)]
    assert len(points_of(many, (), 50, 0)) == 50  # of 10^16


@pytest.mark.parametrize(
    ("axes", "zipped", "words"),
    [
        ([], [], "needs an axis"),
        (["a=1", "a=2"], [], "two axes of one path"),
        (["a=1"], ["b=1,2", "c=1,2,3"], "equally many"),
        ([f"p{i}={','.join(map(str, range(100)))}" for i in range(4)], [], "too many"),
    ],
)
def test_what_is_no_grid_is_refused(axes: list[str], zipped: list[str], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        points_of([parse_axis(one) for one in axes], [parse_axis(one) for one in zipped], None, 0)
    for text in ("a", "=1", "a=1,,2", "a="):
        with pytest.raises(ScenarioError, match="is no axis"):
            parse_axis(text)


def scenario_in(folder: Path) -> Any:
    (folder / "s.yaml").write_text(SCENARIO)
    return load_scenario(folder / "s.yaml")


def test_a_key_is_what_a_point_depends_on(tmp_path: Path) -> None:
    """Names do not change it; numbers and the content of files that are named do."""
    loaded = scenario_in(tmp_path)

    def key(*overrides: str) -> str:
        return store.key_of(changed(loaded, overrides).spec, tmp_path)

    assert key() == key("name=other") == key("workload.steps=2")
    assert len({key(), key("workload.steps=3"), key("seed=1"), key("cluster.nodes=2")}) == 4
    cards = tmp_path / "cards.yaml"
    cards.write_text("links: []")
    first = key("cluster.cards=cards.yaml")
    cards.write_text("links:   []")
    assert first != key("cluster.cards=cards.yaml") != key()


def test_a_damaged_file_is_not_done(tmp_path: Path) -> None:
    store.save(tmp_path, {"key": "a", "metrics": {}})
    assert store.load(tmp_path, "a") == {"key": "a", "metrics": {}}
    for text in ("", "{", "[]", '{"key": "b"}'):
        (tmp_path / "a.json").write_text(text)
        assert store.load(tmp_path, "a") is None
    assert store.load(tmp_path, "none") is None


def tasks_of(folder: Path) -> list[Task]:
    loaded = scenario_in(folder)
    points = points_of([parse_axis("workload.tokens_per_device=4,8"), parse_axis("cluster.nodes=1,2")], (), None, 0)
    specs = [changed(loaded, [f"{path}={value}" for path, value in point]).spec for point in points]
    return [
        Task(key=store.key_of(spec, folder), point=point, spec=spec, base=folder)
        for spec, point in zip(specs, points, strict=True)
    ]


def test_points_are_what_run_says(tmp_path: Path) -> None:
    """What points share changes nothing: each has the metrics of a run of its own, and is kept at once."""
    tasks = tasks_of(tmp_path)
    results = [result for batch in in_processes(tasks, tmp_path, 1) for result in batch]
    for task, result in zip(tasks, results, strict=True):
        alone = run(task.spec, tmp_path, "test").tables[0].results[0]
        assert result["metrics"] == alone.metrics
        kept = store.load(tmp_path, task.key)
        assert kept is not None and kept["metrics"] == json.loads(json.dumps(alone.metrics))


def results_with(values: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    return [
        {"key": f"{a}{b}", "point": {"a": a, "b": b}, "metrics": {"tokens_per_s": value, "step_time_s": 1 / value}}
        for (a, b), value in values.items()
    ]


def test_effects_and_ranking_by_hand() -> None:
    results = results_with({("1", "x"): 1.0, ("1", "y"): 4.0, ("2", "x"): 9.0, ("2", "y"): 4.0})
    results.append({"key": "none", "point": {"a": "3", "b": "x"}, "error": "does not fit"})
    largest, smallest = findings.effects(results, "tokens_per_s")
    assert largest.path == "a" and largest.means == pytest.approx({"1": 2.0, "2": 6.0})
    assert largest.span == pytest.approx(2.0)
    assert smallest.means == pytest.approx({"x": 3.0, "y": 4.0})
    assert [r["key"] for r in findings.ranked(results, "tokens_per_s")] == ["2x", "1y", "2y", "1x"]
    assert [r["key"] for r in findings.ranked(results, "step_time_s")] == ["2x", "1y", "2y", "1x"]
    assert is_cost("ttft_s.p99") and not is_cost("tokens_per_s_per_device")
    assert is_cost("energy_j_per_token") and is_cost("cost_usd_per_mtok") and not is_cost("cache_hit_frac")
    text = findings.csv_text(results).splitlines()
    assert text[0] == "a,b,tokens_per_s,step_time_s,error"
    assert text[-1] == "3,x,,,does not fit"


def test_the_front_is_what_nobody_beats() -> None:
    rng = np.random.default_rng(0)
    results = [
        {"key": str(i), "point": {}, "metrics": {"step_time_s": 1 / x, "tokens_per_s": y, "tokens_per_s_per_device": y}}
        for i, (x, y) in enumerate(rng.random((60, 2)))
    ]
    front = {result["key"] for result in findings.front(results)}
    for one in results:
        speeds = 1 / one["metrics"]["step_time_s"], one["metrics"]["tokens_per_s"]
        beaten = any(
            1 / other["metrics"]["step_time_s"] > speeds[0] and other["metrics"]["tokens_per_s"] > speeds[1]
            for other in results
        )
        assert (one["key"] in front) == (not beaten)


def test_keys_inside_a_section_survive_the_section() -> None:
    point = (("schedule.chunks", "4"), ("schedule", "{overlap: chunked}"), ("cluster.nodes", "2"))
    assert overrides_of(point) == ["schedule={overlap: chunked}", "schedule.chunks=4", "cluster.nodes=2"]
