"""Result files read back: one that an early version wrote, what is refused, and two beside each other."""

import json
from pathlib import Path
from typing import Any

import pytest

import moesim
from scenarios.errors import MoesimError
from scenarios.files import write_text
from sim.outputs import json_text
from sim.result import SCHEMA
from sim.result_file import MIGRATIONS
from tests.fake_results import fake_comparison

EARLY = Path(__file__).parents[1] / "golden" / "result-schema-0.json"
"""Written by the first version that had the command (commit 268b56d); of four plans a workload, two were kept."""


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    write_text(json_text(fake_comparison()), tmp_path / "result.json")
    return tmp_path / "result.json"


def changed(path: Path, name: str, change: Any) -> Path:
    document = json.loads(path.read_text())
    change(document)
    write_text(json.dumps(document), path.with_name(name))
    return path.with_name(name)


def test_what_was_written_is_read_back(stored: Path) -> None:
    result = moesim.read(stored.parent)
    assert result.as_json() == json.loads(stored.read_text())
    frame = result.to_dataframe()
    assert list(frame["plan"]) == ["greedy", "contiguous", "random"]
    assert frame["step_time_s"].tolist() == pytest.approx([1e-3, 1.1e-3, 1.21e-3])
    assert "greedy" in repr(result)
    (path,) = result.save(stored.parent / "again")
    assert moesim.read(path).as_json() == result.as_json()


def test_a_file_of_an_early_version_is_brought_up_to_date() -> None:
    before, result = json.loads(EARLY.read_text()), moesim.read(EARLY)
    after = result.as_json()
    assert "schema" not in before
    assert after["schema"] == SCHEMA
    (source, digest) = next(iter(before["provenance"]["trace_layer_0"].items()))
    assert after["provenance"]["traces"][0] == {"source": source, "layer_0": digest}
    assert "trace_layer_0" not in after["provenance"]
    assert after["results"] == before["results"]
    assert len(result.file.tables) == 2


def test_every_schema_has_a_way_to_the_present_one() -> None:
    assert sorted(MIGRATIONS) == list(range(SCHEMA))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "Expecting value"),
        ("[1]", "no `moesim` and `results`"),
        (
            '{"moesim": "9.0", "schema": 99, "results": []}',
            "moesim 9.0 wrote it with schema 99, and this one reads up to",
        ),
        ('{"moesim": "9.0", "schema": "new", "results": []}', "its schema is 'new', not a number"),
        (
            '{"moesim": "0.1", "schema": 1, "scenario": "a", "results": [{"name": 3}]}',
            "results.0.workload: Field required",
        ),
        ('{"moesim": "0.1", "schema": 0, "results": [], "provenance": 3}', "give what run, compare or place wrote"),
    ],
)
def test_what_is_no_result_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_text(text, tmp_path / "x.json")
    with pytest.raises(MoesimError, match=message) as caught:
        moesim.read(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MoesimError, match=r"result\.json: cannot be read"):
        moesim.read(tmp_path)


def test_equal_results_differ_in_nothing(stored: Path) -> None:
    found = moesim.diff(stored, stored)
    assert found.ok
    assert found.changed == []


def test_differences_are_told_the_largest_first(stored: Path) -> None:
    def slower(document: dict[str, Any]) -> None:
        greedy, contiguous, random = document["results"]
        greedy["metrics"]["step_time_s"] *= 1.5
        contiguous["metrics"]["step_time_s"] *= 0.9
        random["name"] = "shuffled"
        document["results"] = [contiguous, greedy, random]
        for plan in document["results"]:
            plan["workload"]["tokens_per_device"] = 7
        document["constants"][0]["value"] = "other"

    found = moesim.diff(stored, changed(stored, "after.json", slower), limit=0.05)
    times = [(one.plan, one.metric, round(one.change_frac, 3)) for one in found.changed]
    assert times == [("greedy", "step_time_s", 0.5), ("contiguous", "step_time_s", -0.1)]
    assert not found.ok
    content = found.as_json()
    assert content["only_before"] == ["random (workload 1)"]
    assert content["only_after"] == ["shuffled (workload 1)"]
    assert content["workloads"] == ["tokens_per_device of workload 1 (64 before, 7 after)"]
    assert len(content["constants"]) == 1
    assert "The best plan of workload 1 was greedy, and is contiguous." in repr(found)
    wide = moesim.diff(stored, stored.with_name("after.json"), limit=0.6)
    assert wide.changed == []
    assert not wide.ok
