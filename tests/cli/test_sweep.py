"""`moesim sweep` as a user runs it: in processes, interrupted, again, and on a local Ray where it is installed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_sweep import SCENARIO

AXES = ("--set", "workload.tokens_per_device=4,8,16", "--set", "schedule.overlap=none,chunked")


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    return tmp_path / "s.yaml"


def command(scenario: Path, *options: str) -> list[str]:
    folder = str(scenario.parent / "kept")
    return [sys.executable, "-m", "moesim", "sweep", str(scenario), "--out", folder, *options]


def swept(scenario: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(scenario, *options), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def content(scenario: Path) -> Any:
    return json.loads((scenario.parent / "kept" / "sweep.json").read_text())


@pytest.mark.slow
def test_a_sweep_is_kept_and_run_again_does_only_what_is_missing(scenario: Path) -> None:
    done = swept(scenario, *AXES, "--jobs", "2")
    assert "6 points, best tokens_per_s first" in done.stdout
    kept = scenario.parent / "kept"
    stamps = {path: path.stat().st_mtime_ns for path in (kept / "points").iterdir()}
    assert len(stamps) == 6
    first = content(scenario)
    swept(scenario, *AXES, "--set", "workload.steps=2", "--jobs", "1")
    assert {path: path.stat().st_mtime_ns for path in (kept / "points").iterdir()} == stamps
    assert [r["metrics"] for r in content(scenario)["results"]] == [r["metrics"] for r in first["results"]]
    with (kept / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["schedule.overlap"] for row in rows} == {"none", "chunked"}
    for name in ("map.png", "effects.png", "parallel.png", "front.png", "points.parquet"):
        assert (kept / name).stat().st_size > 1000


@pytest.mark.slow
def test_a_killed_sweep_loses_only_what_was_in_flight(scenario: Path) -> None:
    axes = ("--set", f"workload.tokens_per_device={','.join(map(str, range(4, 64)))}", "--jobs", "1")
    running = subprocess.Popen(command(scenario, *axes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    points = scenario.parent / "kept" / "points"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not points.is_dir() or len(list(points.glob("*.json"))) < 3):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = {path: path.stat().st_mtime_ns for path in points.glob("*.json")}
    assert 3 <= len(before) < 60
    swept(scenario, *axes)
    after = {path: path.stat().st_mtime_ns for path in points.glob("*.json")}
    assert len(after) == 60
    assert {path: after[path] for path in before} == before


@pytest.mark.slow
def test_points_that_cannot_be_are_told(scenario: Path) -> None:
    done = swept(scenario, "--set", "workload.tokens_per_device=8", "--set", "model=olmoe-1b-7b,deepseek-v3")
    assert "1 of 2 points cannot be simulated" in done.stdout
    assert sum("error" in result for result in content(scenario)["results"]) == 1


@pytest.mark.slow
def test_bad_axes_are_told_before_anything_is_simulated(scenario: Path) -> None:
    done = swept(scenario, "--set", "workload.tokens_per_device=8,x", "--set", "cluster.nodse=1,2", code=2)
    assert "cluster.nodse: unknown key" in done.stderr
    assert "workload.tokens_per_device" in done.stderr
    assert not list((scenario.parent / "kept").rglob("*.json"))
    assert "is no axis" in swept(scenario, "--set", "a", code=2).stderr
    assert "needs an axis" in swept(scenario, code=2).stderr


@pytest.mark.slow
def test_a_metric_that_no_point_has_is_told(scenario: Path) -> None:
    done = swept(scenario, "--set", "workload.tokens_per_device=8", "--rank", "speed", code=2)
    assert "no point has such a metric" in done.stderr


@pytest.mark.slow
def test_a_local_ray_gives_the_same_results(scenario: Path) -> None:
    pytest.importorskip("ray", reason="needs ray: pip install 'moesim[ray]'")
    swept(scenario, *AXES, "--ray", "local")
    first = content(scenario)
    swept(scenario, *AXES, "--jobs", "1", "--fresh")
    assert [r["metrics"] for r in content(scenario)["results"]] == [r["metrics"] for r in first["results"]]
