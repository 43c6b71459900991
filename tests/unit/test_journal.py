"""Served loads that are interrupted: what is on disk is valid, and a rerun ends with the same numbers, bit for bit."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.errors import MoesimError
from sim.serving import journal as journals
from sim.serving.handover import serve_apart
from sim.serving.journal import Journal, JournaledPrices
from sim.serving.loop import Served, answered, serve
from sim.serving.measures import serving_metrics
from sim.serving.ranks import RankLoad
from tests.oracles.test_handover import side_of, wire_of
from tests.oracles.test_serving import RoundPrices, requests_with, spec_of

SCENARIO = """
name: long
model: {card: olmoe-1b-7b, n_layers: 1}
cluster: {node: h100-sxm-8, devices_per_node: 2}
workload: {synthetic: {tokens: 2048}}
serving:
  requests: {requests_per_s: 200, n: 12000, input_tokens: 100, output_tokens: 50}
  token_budget: 64
  max_requests: 16
"""


@dataclass
class Breaking(RoundPrices):
    """Prices that end the process after so many iterations."""

    left: int = 1 << 30

    def iteration_s(self, loads: Sequence[RankLoad]) -> float:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().iteration_s(loads)

    def stretch_s(self, loads: Sequence[RankLoad], n: int) -> Any:
        return RoundPrices().stretch_s(loads, n)


def tell(journal: Journal, told: Callable[[], Served]) -> None:
    def so_far() -> dict[str, Any] | None:
        done = answered(told())
        return None if done is None else {"done": len(done.requests), **serving_metrics(done, None, 0.0)}

    journal.partial = so_far


def load(prices: Any, watch: Any = None, *, apart: bool = False) -> Served:
    trace = requests_with(4, n=60, requests_per_s=60.0)
    if not apart:
        return serve(trace, spec_of(), 2, 500, prices, watch=watch)
    sides = [side_of(1, 500), side_of(2, 500)]
    for side in sides:
        object.__setattr__(side, "prices", prices)
    return serve_apart(trace, *sides, wire_of(True), watch)


@pytest.mark.parametrize("apart", [False, True])
def test_an_interrupted_load_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("sim.serving.journal.monotonic", lambda: next(ticks) / 40)  # a write every 40 prices
    monkeypatch.setattr(journals, "SHARE", 0)
    whole, folder = load(RoundPrices(), apart=apart), tmp_path / "unfinished"
    for n in (150, 150):
        journal = Journal.of(folder, "a plan")
        with pytest.raises(KeyboardInterrupt):
            load(JournaledPrices(Breaking(n), journal), partial(tell, journal), apart=apart)
        with journal.path.open("ab") as file:
            file.write(b"cut")  # a write that was not finished
        told = json.loads(journal.path.with_suffix(".json").read_text())
        assert 0 < told["done"] < 60
        assert 0 < told["ttft_s.p50"] < told["e2e_s.p50"]
    n_known, prices = journal.path.stat().st_size // 8, Breaking(1000)
    journal = Journal.of(folder, "a plan")
    got = load(JournaledPrices(prices, journal), apart=apart)
    journal.write()
    assert 200 < n_known == journal.path.stat().st_size // 8 - (1000 - prices.left)
    np.testing.assert_array_equal(got.done_s, whole.done_s)
    np.testing.assert_array_equal(got.end_s, whole.end_s)
    np.testing.assert_array_equal(got.used_blocks, whole.used_blocks)


def test_damage_and_folders_that_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "a.times"
    path.write_bytes(np.array([1.0, 2.0, 0.0, 3.0]).tobytes())
    journal = Journal(path)
    assert [journal.priced(lambda: 7.0) for _ in range(3)] == [1.0, 2.0, 7.0]
    journal.write()
    assert np.frombuffer(path.read_bytes()).tolist() == [1.0, 2.0, 7.0]
    with pytest.raises(MoesimError, match="choose another --out"):
        Journal.of(path / "below", "key")


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(SCENARIO)

    def begin(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "moesim", "run", str(tmp_path / "long.yaml"), "--out", str(tmp_path / out)]
        return subprocess.Popen([*command, "--quiet"])

    killed, began_s = begin("killed"), time.monotonic()
    while not list((tmp_path / "killed").glob("unfinished/*.json")):
        assert killed.poll() is None and time.monotonic() < began_s + 60
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    (unfinished,) = (tmp_path / "killed" / "unfinished").glob("*.json")
    told = json.loads(unfinished.read_text())
    assert 0 < told["requests_done"] < told["requests"] == 12000
    assert not (tmp_path / "killed" / "result.json").exists()
    assert begin("killed").wait() == begin("whole").wait() == 0
    results = [json.loads((tmp_path / out / "result.json").read_text())["results"] for out in ("killed", "whole")]
    assert results[0] == results[1]
    assert not (tmp_path / "killed" / "unfinished").exists()
