"""Damaged, foreign and unsuitable routing: a message with path and remedy, and no trace left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.catalog import find_model
from scenarios.errors import MoesimError
from scenarios.loader import load_scenario
from scenarios.workload_specs import SynthesisSpec
from tests.cli.command import CARD, SCENARIO, Done
from tests.cli.conftest import Command
from traces.storage import load_trace, save_trace
from traces.synth import knobs_from_spec, synthesise

USE = "workload={trace: t.npz, tokens_per_device: 4, steps: 2}"
EXAMPLE = (Path(__file__).resolve().parents[2] / "scenarios/library/examples/first.yaml").read_text()


@pytest.fixture
def trace(folder: Path) -> Path:
    """`t.npz`: synthetic routing of the tiny model."""
    spec = SynthesisSpec(tokens=128, sequence_tokens=16)
    knobs = knobs_from_spec(spec, find_model("tiny-moe.yaml", folder), None)
    save_trace(synthesise(knobs, np.random.default_rng(0)), folder / "t.npz")
    return folder / "t.npz"


def change(path: Path, **changes: Any) -> None:
    """Replace arrays of a trace, or keys of its description, given as `meta`."""
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes()) | changes.pop("meta", {})
    np.savez(path, **(arrays | {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)} | changes))


def test_the_trace_is_sound(moesim: Command, trace: Path) -> None:
    facts = json.loads(moesim("trace", "info", trace.name, "--json", "-").succeeded().out)
    assert (facts["tokens"], facts["sequences"], facts["experts"], facts["top_k"]) == (128, 8, 16, 2)
    moesim("run", "tiny.yaml", "--set", USE).succeeded()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("n_experts: 32", "16 experts where tiny-moe has 32"),
        ("n_layers: 5", "3 MoE layers where tiny-moe has 5"),
        ("top_k: 4", "2 routed experts per token where tiny-moe has 4"),
    ],
)
def test_a_trace_of_another_model_is_refused(moesim: Command, folder: Path, trace: Path, line: str, text: str) -> None:
    assert trace.exists()
    key = line.split(":", maxsplit=1)[0]
    lines = [line if old.startswith(f"{key}:") else old for old in CARD.splitlines()]
    (folder / "tiny-moe.yaml").write_text("\n".join(lines))
    done = moesim("run", "tiny.yaml", "--set", USE)
    done.refused(2, f"the trace (tiny-moe) has {text}; choose the trace's own model")


def test_all_differences_to_the_model_are_told_together(moesim: Command, trace: Path) -> None:
    assert trace.exists()
    done = moesim("run", "tiny.yaml", "--set", USE, "--set", "model=mixtral-8x7b")
    done.refused(2, "16 experts where mixtral-8x7b has 8, and 3 MoE layers where mixtral-8x7b has 32;")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"meta": {"n_experts": 9}}, "is out of range for 9 experts; physical (slot) ids need the engine's map"),
        ({"meta": {"n_experts": 1}}, "top-2 of 1 experts is impossible"),
        ({"meta": {"format": "moesim-routing-9"}}, "format moesim-routing-9, where this moesim reads"),
        ({"ids": np.zeros((3, 2, 128), np.int64)}, "ids must be uint8 or uint16"),
        ({"ids": np.array([{}], dtype=object)}, "holds Python objects"),
        ({"offsets": np.array([0, 99])}, "offsets must run from 0 to the 128 tokens"),
        ({"positions": np.arange(5)}, "positions have shape (5,), expected (128,)"),
    ],
)
def test_inconsistent_traces(moesim: Command, trace: Path, changes: dict[str, Any], text: str) -> None:
    change(trace, **changes)
    moesim("trace", "info", trace.name).refused(2, "t.npz: ", text)
    moesim("run", "tiny.yaml", "--set", USE).refused(2, "t.npz: ", text)


def test_truncated_traces(moesim: Command, trace: Path) -> None:
    whole = trace.read_bytes()
    for length in [0, 1, 30, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        trace.write_bytes(whole[:length])
        moesim("trace", "info", trace.name).refused(2, "t.npz: not a readable trace", "`moesim trace import`")


def test_damaged_bytes_of_a_trace_are_no_bug(moesim: Command, trace: Path) -> None:
    whole = trace.read_bytes()
    rng = np.random.default_rng(1)
    codes = []
    for _ in range(12):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
        trace.write_bytes(bytes(damaged))
        done = moesim("trace", "info", trace.name)
        if done.code:
            done.refused(2, "t.npz: ")
        codes.append(done.code)
    assert codes.count(2) > 6


def test_mutated_traces_raise_nothing_but_our_errors(trace: Path) -> None:
    refused = 0
    for damaged in mutations(trace.read_bytes(), 200, b"\x00\xff0(),'{}PK"):
        trace.write_bytes(damaged)
        try:
            load_trace(trace)
        except MoesimError as error:
            assert "t.npz" in str(error)
            refused += 1
    assert refused > 150


def mutations(content: bytes, n: int, letters: bytes) -> list[bytes]:
    """`content` with one to three bytes or stretches deleted, swapped, repeated or replaced."""
    rng = np.random.default_rng(0)
    changed = []
    for _ in range(n):
        damaged = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            first, second = sorted(int(place) for place in rng.integers(0, len(damaged), 2))
            stretch = slice(first, min(first + int(rng.integers(1, 12)), len(damaged)))
            match int(rng.integers(4)):
                case 0:
                    del damaged[stretch]
                case 1:
                    damaged[first], damaged[second] = damaged[second], damaged[first]
                case 2:
                    damaged[second:second] = damaged[stretch]
                case _:
                    damaged[first] = letters[int(rng.integers(len(letters)))]
        changed.append(bytes(damaged))
    return changed


@pytest.mark.parametrize("text", [EXAMPLE, SCENARIO, CARD], ids=["first", "tiny", "card"])
def test_mutated_yaml_raises_nothing_but_our_errors(folder: Path, text: str) -> None:
    path = folder / ("tiny-moe.yaml" if text == CARD else "tiny.yaml")
    refused = 0
    for damaged in mutations(text.encode(), 200, b"0-:[]{}#&*!|>%@`'\"\t\n\x00\xff.,"):
        path.write_bytes(damaged)
        try:
            scenario = load_scenario(folder / "tiny.yaml")
            find_model(scenario.spec.model, folder)
        except MoesimError as error:
            assert str(error)
            refused += 1
    assert refused > 100


def test_values_of_the_wrong_kind_raise_nothing_but_our_errors(folder: Path) -> None:
    values = [
        "",
        "~",
        "0",
        "-1",
        "1e308",
        "''",
        "text",
        "[]",
        "{}",
        "[{}]",
        "{a: 1}",
        "true",
        "900 GB/s",
        "1:30",
        "=",
        "?",
    ]
    keys = [
        "cluster", "cluster.node", "cluster.nodes", "cluster.devices_per_node", "cluster.intra_bandwidth",
        "workload", "workload.synthetic", "workload.synthetic.reuse", "workload.phase", "workload.steps",
        "workload.split", "workload.split.fit", "parallel", "parallel.attention", "parallel.experts.ep",
        "placement", "placement.solver", "placement.redundant", "schedule", "schedule.exchange", "schedule.chunks",
        "memory", "memory.reserve", "compare", "compare.placement", "compare.schedule", "compare.workload.0",
        "model", "name", "seed",
    ]  # fmt: skip
    refused = 0
    for key in keys:
        for value in values:
            try:
                load_scenario(folder / "tiny.yaml", [f"{key}={value}"])
            except MoesimError as error:
                assert key.split(".")[0] in str(error), (key, value, str(error))
                refused += 1
    assert refused > 300


def write_counts(folder: Path) -> None:
    np.save(folder / "counts.npy", np.arange(2 * 3 * 8).reshape(2, 3, 8))


def test_a_format_of_counts_shows_them_and_writes_nothing(moesim: Command, folder: Path) -> None:
    write_counts(folder)
    done = moesim("trace", "import", "moe-infinity", "counts.npy", "t.npz")
    Done(code=done.code, out="", err=done.err, files=done.files).refused(
        2, "counts.npy: moe-infinity holds counts, not routes per token, so there is no trace to write"
    )
    assert "routed tokens  1128" in " ".join(done.out.split("\n")).replace("   ", "  ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["trtlm-raw", "counts.npy", "t.npz"], "unknown trace format 'trtlm-raw'; did you mean 'trtllm-raw'?"),
        (["nonsense", "counts.npy", "t.npz"], "unknown trace format 'nonsense'; known: dynande,"),
        (["esft", "absent", "t.npz"], "absent: no such file or folder"),
        (["moe-infinity", "tiny.yaml", "t.npz"], "tiny.yaml: not a readable .npy array"),
        (["moe-infinity", ".", "t.npz"], ".: "),
        (["moe-balance", "tiny.yaml", "t.npz"], "tiny.yaml: "),
        (["gptoss-fingerprint", ".", "t.npz"], ".: "),
        (["gptoss-json", ".", "t.npz"], ".: no file *.json in this folder"),
        (["moe-infinity", "counts.npy", "no/t.npz"], "no/t.npz: cannot be written (there is no folder no)"),
        (["moe-infinity", "counts.npy", "."], ".: is a folder; give a file name"),
    ],
)
def test_imports_that_cannot_be(moesim: Command, folder: Path, arguments: list[str], text: str) -> None:
    write_counts(folder)
    moesim("trace", "import", *arguments).refused(2, text)


def test_a_failed_import_leaves_the_old_trace(moesim: Command, folder: Path, trace: Path) -> None:
    (folder / "notes.json").write_text("{")
    moesim("trace", "import", "moe-balance", "notes.json", trace.name).refused(2, "notes.json: ")
