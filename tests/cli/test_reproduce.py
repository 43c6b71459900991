"""`moesim reproduce`: tables, files and exit codes, on a paper made up for the test."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

PAPER = """\
system: small
title: a paper made up for the test
source: nowhere
scenario:
  {name: small, model: tiny-moe.yaml, cluster: {node: h200-sxm-8}, workload: {synthetic: {tokens: 512}, steps: 2}}
cases:
  one: {}
  slow: {set: {schedule.step_overhead: 1 ms}}
fits:
  - {path: schedule.step_overhead, case: one, cases: [one], metric: step_time_s, published: 2 ms,
     range: [0.01 ms, 20 ms], source: nobody}
claims:
  - {id: overhead, quantity: host time, config: "", published: 1 ms, predict: breakdown_s.host(slow), source: nobody}
  - {id: order, quantity: order, config: "", published: [slow, one], rank: step_time_s, source: nobody}
  - {id: half, quantity: host time, config: "", published: 4 ms, predict: breakdown_s.host(slow), source: nobody REASON}
"""


@pytest.mark.slow
def test_reproduce_shows_claims_constants_and_systems(moesim: Command, folder: Path) -> None:
    (folder / "small.yaml").write_text(PAPER.replace(" REASON", ', reason: "said to be so"'))
    done = moesim("reproduce", "small.yaml", "--json", "r.json", "--out", "out").succeeded()
    for text in ("-75.0%", "said to be so", "1 fitted", "schedule.step_overhead of one", "datasheet", "1 of 1"):
        assert text in done.out
    assert {"r.json", "out/reproductions.json", "out/reproductions.png"} <= done.files
    content = json.loads((folder / "r.json").read_text())
    assert content == json.loads((folder / "out" / "reproductions.json").read_text())
    assert [claim["id"] for claim in content["claims"]] == ["overhead", "order", "half"]
    fitted = [constant for constant in content["constants"] if constant["kind"] == "fitted"]
    assert [(one["system"], one["name"]) for one in fitted] == [("small", "schedule.step_overhead of one")]


@pytest.mark.slow
def test_a_claim_that_is_far_off_without_a_reason_fails(moesim: Command, folder: Path) -> None:
    (folder / "small.yaml").write_text(PAPER.replace(" REASON", ""))
    assert moesim("reproduce", "small.yaml", "--quiet").code == 1
    assert moesim("reproduce", "small.yaml", "--limit", "0.8", "--quiet").code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("claims:", "grids: {few: []}\nclaims:"), "grids.few: needs at least 1 entries"),
        (("claims:", "grids: {few: [[]]}\nclaims:"), "grids.few.0: needs at least 1 entries"),
        (("rank: step_time_s", "rank: step_time_s, grid: few"), "claims"),
        (("predict: breakdown_s.host(slow)", "grid: few, predict: breakdown_s.host(slow)"), "few"),
    ],
)
def test_wrong_grids_are_told_with_their_place(
    moesim: Command, folder: Path, change: tuple[str, str], message: str
) -> None:
    (folder / "small.yaml").write_text(PAPER.replace(" REASON", "").replace(*change))
    done = moesim("reproduce", "small.yaml")
    assert done.code == 2
    assert "small.yaml" in done.err
    assert message in done.err
