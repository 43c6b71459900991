"""A sample of the campaign, hostile files at every door, and proof that the campaign sees what it looks for."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.formats import FORMATS, export_plan, import_plan
from placement.formats.contents import PlanFile
from placement.plan import Placement
from scenarios.errors import MoesimError, ScenarioError
from tests.conformance.test_plan_formats import COUNTING, DENSE_FIRST
from tests.fuzz import entries, hostile
from tests.fuzz.campaign import FINE, Found, Job, found_by
from tests.fuzz.corpus import one_file
from tests.fuzz.entries import ENTRIES, Entry

FAST = ("set", "expression", "quantity", "axis", "trace", "requests", "sweep", "import vllm-hook", "plan moesim.json")
HEAVY = ("run", "place", "bound", "calibrate", "validate")
BOMBS = ("zip bomb", "gzip bomb", "gzip bomb of JSON", "gzip bomb of rows")  # seconds to make


def job(entry: str, n: int, limit_s: float = 20.0) -> Job:
    return Job(entry=entry, numbers=range(n), seed=7, limit_s=limit_s, keep=None)


def defects(found: list[Found]) -> list[Found]:
    return [one for one in found if one.outcome not in FINE]


@pytest.mark.slow
@pytest.mark.parametrize("entry", FAST)
def test_mutated_inputs_are_read_or_refused(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.campaign.HOSTILE_SHARE", 0.0)  # below
    found = list(found_by(job(entry, 60)))
    assert defects(found) == []
    assert {"read"} <= {one.outcome for one in found}


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["scenario", "config.json", "trace", "requests", "import vllm-hook", "plan eplb.npz"])
def test_hostile_files_are_refused(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.campaign.HOSTILE_SHARE", 1.0)
    names = iter([name for name in hostile.names() if name not in BOMBS])
    monkeypatch.setattr(Random, "choice", lambda _, options: next(names) if "pipe" in options else options[0])
    found = list(found_by(job(entry, len(hostile.names()) - len(BOMBS))))
    assert defects(found) == []
    assert sum(one.outcome == "refused" for one in found) > len(found) - 4  # root may read what is unreadable


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda path: pickle.loads(path.read_bytes()), "executed"),
        (lambda path: {}[path.name], "KeyError"),
        (lambda _: time.sleep(5), "hang"),
        (lambda _: bytearray(1 << 62), "memory"),
        (lambda _: _refuse("it is wrong"), "unnamed"),
        (lambda path: _refuse(f"{path}: it is wrong"), "refused"),
        (lambda path: (path.parents[2] / "elsewhere").write_text(""), "executed"),
    ],
)
def test_the_campaign_sees_what_it_looks_for(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], outcome: str
) -> None:
    from tests.fuzz.canary import Canary

    monkeypatch.setitem(entries.ENTRIES, "fake", Entry(seeds=(one_file("a.bin", pickle.dumps(Canary()), read),)))
    monkeypatch.setattr("tests.fuzz.campaign._change", lambda originals, _: (next(iter(originals)), "unchanged"))
    try:
        assert [one.outcome for one in found_by(job("fake", 1, limit_s=0.02))] == [outcome]
    finally:
        (Path(os.environ.get("TMPDIR", "/tmp")) / "elsewhere").unlink(missing_ok=True)


def _refuse(text: str) -> None:
    raise ScenarioError(text)


def test_inputs_are_the_same_every_time() -> None:
    assert list(found_by(job("axis", 20))) == list(found_by(job("axis", 20)))


def test_every_entry_reads_what_it_is_made_of(tmp_path: Path) -> None:
    for name in sorted(ENTRIES.keys() - set(HEAVY)):
        if ".pt" in name or "parquet" in name or "sglang-" in name:
            continue  # need packages that take long to import
        folder = tmp_path / name / "input"
        folder.mkdir(parents=True)
        os.chdir(folder.parent)
        ENTRIES[name].seeds[0](folder)()


FORMATS_TRIED = [(name, s) for name, f in FORMATS.items() for s in f.suffixes if s != ".pt" and name not in COUNTING]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(random=st.randoms(use_true_random=False), copies=st.integers(0, 2), chosen=st.sampled_from(FORMATS_TRIED))
def test_a_plan_that_is_exported_is_imported_again(
    tmp_path_factory: pytest.TempPathFactory, random: Random, copies: int, chosen: tuple[str, str]
) -> None:
    """Slots drawn at random: the file gives them back, or the format says why it cannot hold them."""
    deployment = replace(DENSE_FIRST, n_experts=12, n_ranks=4)
    extra = 4 * copies
    rows = [random.sample(range(12), 12) + [random.randrange(12) for _ in range(extra)] for _ in deployment.moe_layers]
    plan = Placement.from_slots(np.array(rows), 4, n_experts=12, name="é\n../x")
    content = PlanFile(placement=plan, deployment=deployment, loads=np.ones((2, 12), np.int64))
    path = tmp_path_factory.mktemp("plan") / f"plan{chosen[1]}"
    try:
        export_plan(chosen[0], content, path)
    except MoesimError as error:
        assert "exflow has one GPU for each expert" in str(error) and extra
        return
    back = import_plan(path, deployment)
    assert isinstance(back, Placement)
    ranks = [np.sort(one.expert_of_slot.reshape(2, 4, -1), axis=2).tolist() for one in (plan, back)]
    assert ranks[0] == ranks[1]
