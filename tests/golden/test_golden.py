"""Stored results of small scenarios: any change of a metric must be meant, and is written by `make golden`."""

import copy
import json

import pytest

from tests.golden.rewrite import RTOL, SCENARIOS, differences, golden_path, result_of


@pytest.mark.parametrize("name", SCENARIOS)
def test_results_are_those_stored(name: str) -> None:
    stored = json.loads(golden_path(name).read_text())
    changed = list(differences(stored, result_of(name)))
    assert not changed, "\n".join(["`make golden` writes them anew, if this is meant:", *changed])


def test_differences_are_found_and_told() -> None:
    old = {"plans": {"a": {"step_time_s": 2.0, "gone": 1.0, "zero": 0.0}, "b": {"step_time_s": 1.0}}}
    new = copy.deepcopy(old)
    assert list(differences(old, new)) == []
    new["plans"]["a"] = {"step_time_s": 2.0 * (1 + 2 * RTOL), "zero": 0.5, "new": 3.0}
    del new["plans"]["b"]
    assert list(differences(old, new)) == [
        "a: gone is gone: 1.0",
        "a: new is new: 3.0",
        "a: step_time_s 2 -> 2.000000004 (+2e-09)",
        "a: zero 0 -> 0.5 (from nothing)",
        "b: step_time_s is gone: 1.0",
    ]
    within = {"plans": {"a": {"step_time_s": 2.0 * (1 + RTOL / 2)}}}
    assert list(differences({"plans": {"a": {"step_time_s": 2.0}}}, within)) == []


def test_stored_results_name_what_they_rest_on() -> None:
    for name in SCENARIOS:
        stored = json.loads(golden_path(name).read_text())
        assert {"moesim", "numpy", "seed", "scenario"} <= stored["provenance"].keys()
        assert all(constant["source"] for constant in stored["constants"])
