"""Every command at work: what it prints, what it writes, and that the same words give the same results."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim as package
from moesim.version import version_text
from tests.cli.command import ROOT
from tests.cli.conftest import Command
from tests.shared import shared_file

FIRST = ["--set", "workload.steps=2"]
FIRST += ["--set", "compare.workload.1.steps=1", "--set", "compare.workload.1.tokens_per_device=64"]
KEPT_METRICS = {
    "step_time_s",
    "step_time_s.p50",
    "step_time_s.p99",
    "tokens_per_s",
    "tokens_per_s_per_device",
    "load_imbalance",
    "cross_device_frac",
    "cross_node_frac",
    "hidden_comm_frac",
    "memory_bytes.peak",
}
REPORT = {"out/report.html", "out/result.json", "out/timeline.json.gz"}


def results_of(text: str) -> list[dict[str, Any]]:
    """Entries of `results` of a JSON result, after a check of its top level."""
    content = json.loads(text)
    assert content["moesim"] == package.__version__
    assert {"moesim", "scenario", "results"} <= content.keys()
    entries: list[dict[str, Any]] = content["results"]
    assert all({"name", "plan", "metrics"} <= entry.keys() for entry in entries)
    return entries


def test_version_and_help(moesim: Command) -> None:
    own, others = moesim("--version").succeeded().out.splitlines()
    assert re.fullmatch(rf"moesim {package.__version__}( \(commit [0-9a-f]+(-dirty)?\))?", own)
    assert others.startswith(f"Python {platform.python_version()}, numpy {np.__version__}, scipy ")
    top = moesim("-h").succeeded().out
    for command in ("run", "compare", "bound", "validate", "list", "schema", "trace"):
        assert re.search(rf"\b{command}\b", top)
        assert "Usage: moesim" in moesim(command, "--help").succeeded().out
    assert moesim().out.rstrip() == top.rstrip()


def test_the_version_names_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # of a hook that runs the tests
        monkeypatch.delenv(name)
    assert "commit" not in version_text(tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"], ["tag", "v9"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    (commit,) = re.findall(r"commit (\w+)\)", version_text(tmp_path))
    assert len(commit) >= 7
    assert head.startswith(commit)


def test_run_prints_a_table_and_nothing_else(moesim: Command) -> None:
    done = moesim("run", "tiny.yaml").succeeded()
    assert re.search(r"^contiguous", done.out)
    assert re.search(r"\btokens_per_s ", done.out)
    assert "The routing is synthetic" in done.out
    assert done.files == set()


def test_compare_ranks_the_plans(moesim: Command) -> None:
    done = moesim("compare", "tiny.yaml", "--json", "r.json").succeeded()
    assert done.files == {"r.json"}
    entries = results_of(Path("r.json").read_text())
    speeds = [entry["metrics"]["tokens_per_s"] for entry in entries]
    assert sorted(entry["name"] for entry in entries) == ["contiguous", "eplb+8", "greedy"]
    assert speeds == sorted(speeds, reverse=True)
    assert {entry["name"]: entry["gain"] for entry in entries}["contiguous"] == 0
    places = [done.out.index(f"{rank}  {entry['name']}") for rank, entry in enumerate(entries, start=1)]
    assert places == sorted(places)


def test_the_result_holds_the_documented_metrics(moesim: Command) -> None:
    (entry,) = results_of(moesim("run", "tiny.yaml", "--json", "-").succeeded().out)
    metrics = entry["metrics"]
    assert metrics.keys() >= KEPT_METRICS
    assert any(name.startswith("bytes.") for name in metrics)
    assert any(name.startswith("busy_frac.") for name in metrics)
    assert metrics["tokens_per_s"] * metrics["step_time_s"] == pytest.approx(8 * 8)
    assert metrics["tokens_per_s_per_device"] * 8 == pytest.approx(metrics["tokens_per_s"])
    assert all(isinstance(value, float | int) for value in metrics.values())
    assert entry["plan"]["placement"]["solver"] == "contiguous"
    assert sum(entry["breakdown_s"].values()) == pytest.approx(metrics["step_time_s"])


def test_json_on_the_terminal_is_the_only_output(moesim: Command) -> None:
    whole = moesim("compare", "tiny.yaml", "--json", "-").succeeded()
    assert len(results_of(whole.out)) == 3
    assert moesim("compare", "tiny.yaml", "--json", "-", "--quiet").succeeded().out == whole.out
    moesim("compare", "tiny.yaml", "--json", "r.json", "--quiet").succeeded()
    assert Path("r.json").read_text() == whole.out


def test_quiet_prints_nothing(moesim: Command) -> None:
    assert moesim("run", "tiny.yaml", "--quiet").succeeded().out == ""
    assert moesim("compare", "tiny.yaml", "-q").succeeded().out == ""


def test_the_same_command_gives_the_same_bytes_and_the_seed_changes_them(moesim: Command) -> None:
    first, again, other, otherwise = (
        moesim("compare", "tiny.yaml", "--json", "-", *seed).succeeded().out
        for seed in ([], [], ["--seed", "7"], ["--set", "seed=7"])
    )
    assert first == again
    assert other == otherwise
    assert [entry["metrics"] for entry in results_of(other)] != [entry["metrics"] for entry in results_of(first)]


@pytest.mark.slow
def test_processes_with_other_hash_seeds_give_the_same_bytes(
    moesim: Command, moesim_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = moesim("compare", "tiny.yaml", "--json", "-").succeeded().out
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        assert moesim_process("compare", "tiny.yaml", "--json", "-").succeeded().out == expected


@pytest.mark.slow
def test_the_report_folder(moesim: Command) -> None:
    done = moesim("compare", "tiny.yaml", "--out", "out", "--json", "r.json").succeeded()
    assert done.files >= REPORT | {"r.json"}
    assert any(name.startswith("out/plots/") and name.endswith(".svg") for name in done.files)
    assert done.out.rstrip().endswith("Report: out/report.html")
    assert Path("out/result.json").read_bytes() == Path("r.json").read_bytes()
    again = moesim("compare", "tiny.yaml", "--out", "out", "--quiet").succeeded()
    assert again.out == ""
    assert again.files <= {"out/report.html"}  # it says how long the work took


@pytest.mark.slow
def test_the_shipped_scenario_compares_six_plans_at_two_workloads(moesim: Command) -> None:
    done = moesim("compare", "examples/first", *FIRST, "--json", "r.json").succeeded()
    entries = results_of(Path("r.json").read_text())
    assert len(entries) == 12
    assert {entry["workload"]["phase"] for entry in entries} == {"decode", "prefill"}
    assert {entry["plan"]["placement"]["redundant"] for entry in entries} == {0, 8, 32}
    assert done.out.count("contiguous") == 2


def test_the_scenario_that_needs_a_trace_says_how_to_get_it(moesim: Command) -> None:
    done = moesim("compare", "examples/gpt-oss-20b")
    done.refused(2, "no trace file", "gpt-oss-20b.npz; `moesim trace import` makes one")


@pytest.mark.slow
def test_a_captured_trace_is_imported_and_compared(moesim: Command) -> None:
    source = shared_file("data/traces/gptoss20b_fingerprint")
    arguments = ["--model", "gpt-oss-20b", "--licence", "Apache-2.0"]
    imported = moesim("trace", "import", "gptoss-fingerprint", str(source), "gpt-oss-20b.npz", *arguments).succeeded()
    assert imported.files == {"gpt-oss-20b.npz"}
    assert "gpt-oss-20b.npz: 215,438 tokens, 24 layers, 32 experts, top-4" in imported.out
    facts = json.loads(moesim("trace", "info", "gpt-oss-20b.npz", "--json", "-").succeeded().out)
    assert (facts["kind"], facts["licence"], facts["tokens"]) == ("captured", "Apache-2.0", 215438)
    options = [
        "--set",
        "workload.steps=2",
        "--set",
        "compare.workload.1.steps=1",
        "--set",
        "workload.tokens_per_device=8",
    ]
    options += ["--set", "compare.workload.1.tokens_per_device=32"]
    done = moesim("compare", "examples/gpt-oss-20b", *options, "--json", "r.json").succeeded()
    assert len(results_of(Path("r.json").read_text())) == 12
    assert "captured" in done.out
    assert "synthetic" not in done.out


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("models", ["deepseek-v3", "gpt-oss-20b", "mixtral-8x7b"]),
        ("hardware", ["h200-sxm-8", "devices", "nodes", "links", "hosts"]),
        ("scenarios", ["examples/first", "examples/synthetic", "examples/gpt-oss-20b"]),
        ("traces", ["moesim-20m-decode", "moesim-20m-prefill"]),
        ("policies", ["chunked", "port", "fifo", "maxmin"]),
        ("solvers", ["contiguous", "round-robin", "random", "greedy", "eplb"]),
        ("formats", ["gptoss-fingerprint", "trtllm-raw", "moe-infinity"]),
    ],
)
def test_lists(moesim: Command, kind: str, names: list[str]) -> None:
    done = moesim("list", kind).succeeded()
    for name in names:
        assert re.search(rf"\b{re.escape(name)}\b", done.out), name


def test_the_schema_is_json_and_knows_the_sections(moesim: Command) -> None:
    printed = moesim("schema").succeeded()
    schema = json.loads(printed.out)
    assert {"model", "cluster", "workload", "placement", "schedule", "compare"} <= schema["properties"].keys()
    assert moesim("schema", "--out", "s.json").succeeded().files == {"s.json"}
    assert Path("s.json").read_text() == printed.out
    moesim("schema", "--out", "no/s.json").refused(2, "no/s.json: cannot be written")


def test_a_synthetic_trace_from_making_to_use(moesim: Command) -> None:
    knobs = ["--model", "tiny-moe.yaml", "--tokens", "600", "--sequence-tokens", "50", "--skew", "0.9"]
    made = moesim("trace", "synth", "t.npz", *knobs, "--seed", "3").succeeded()
    assert made.files == {"t.npz"}
    assert made.out == "t.npz: " + json.loads(moesim("trace", "info", "t.npz", "--json", "-").out)["source"] + "\n"
    assert "skew 0.9" in made.out
    assert "seed 3" in made.out
    assert moesim("trace", "synth", "t.npz", *knobs, "--seed", "3").succeeded().files == set()
    assert moesim("trace", "synth", "t.npz", *knobs, "--seed", "4").succeeded().files == {"t.npz"}
    shown = moesim("trace", "info", "t.npz").succeeded().out
    assert re.search(r"tokens +600 *\n", shown)
    assert re.search(r"sequences +12 *\n", shown)
    options = ["--set", "workload={trace: t.npz, tokens_per_device: 8, steps: 2}"]
    used = moesim("compare", "tiny.yaml", *options, "--json", "r.json").succeeded()
    assert "600 tokens in 12 sequences" in used.out


def test_statistics_of_a_trace(moesim: Command) -> None:
    knobs = ["--model", "tiny-moe.yaml", "--tokens", "512", "--sequence-tokens", "128"]
    moesim("trace", "synth", "t.npz", *knobs).succeeded()
    facts = json.loads(moesim("trace", "stats", "t.npz", "--json", "-").succeeded().out)
    assert (facts["n_layers"], facts["n_experts"], facts["top_k"], facts["n_tokens"]) == (3, 16, 2, 512)
    assert len(facts["load_imbalance"]) == 3
    assert all(1 <= value <= 16 for value in facts["load_imbalance"])
    assert facts["sequence_reuse"] != facts["adjacent_reuse"]
    more = json.loads(moesim("trace", "stats", "t.npz", "--locality", "--json", "-").succeeded().out)
    assert facts.items() <= more.items()
    assert len(more["hit_frac.lru.rho1-3"]) == 3
    for lru, belady in zip(more["hit_frac.lru.rho1-3"], more["hit_frac.belady.rho1-3"], strict=True):
        assert 0 <= lru <= belady <= 1
    written = moesim("trace", "stats", "t.npz", "--json", "s.json").succeeded()
    assert written.files == {"s.json"}
    assert "load_imbalance" in written.out


@pytest.mark.slow
def test_traces_are_compared_side_by_side_by_name_and_by_file(moesim: Command) -> None:
    knobs = ["--model", "moesim-20m", "--tokens", "1024", "--sequence-tokens", "128", "--affinity", "0"]
    moesim("trace", "synth", "made-up.npz", *knobs).succeeded()
    done = moesim("trace", "compare", "moesim-20m-prefill", "made-up.npz", "--json", "c.json", "--out", "o").succeeded()
    assert done.files == {"c.json", "o/routing.png"}
    facts = json.loads(Path("c.json").read_text())
    captured, made_up = facts["moesim-20m-prefill"], facts["made-up"]
    assert captured["domain_bits"] > 5 * captured["domain_bits_shuffled"]
    assert "domain_bits" not in made_up
    assert captured["affinity_bits"] > made_up["affinity_bits"]
    moesim("trace", "compare", "no-such-trace").refused(2, "no such trace file")
    shown = json.loads(moesim("trace", "info", "moesim-20m-decode", "--json", "-").succeeded().out)
    assert (shown["kind"], shown["phase"], shown["experts"]) == ("captured", "decode", 64)


@pytest.mark.slow
def test_a_synthetic_trace_like_another_one(moesim: Command) -> None:
    moesim("trace", "synth", "a.npz", "--model", "tiny-moe.yaml", "--tokens", "4096", "--skew", "1.5").succeeded()
    moesim("trace", "synth", "b.npz", "--model", "mixtral-8x7b", "--tokens", "512", "--like", "a.npz").succeeded()
    facts = json.loads(moesim("trace", "info", "b.npz", "--json", "-").succeeded().out)
    assert (facts["experts"], facts["top_k"], facts["tokens"], facts["model"]) == (8, 2, 512, "mixtral-8x7b")
    skew = re.search(r"skew ([0-9.]+)", facts["source"])
    assert skew is not None
    assert 1.0 < float(skew[1]) < 2.0


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same(moesim: Command, moesim_process: Command) -> None:
    for arguments in (["list", "scenarios"], ["compare", "tiny.yaml"], ["schema"]):
        assert moesim_process(*arguments).succeeded().out == moesim(*arguments).succeeded().out


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scenarios/library/examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_copy_of_a_shipped_scenario_is_a_start(moesim: Command, folder: Path, path: Path) -> None:
    (folder / "mine.yaml").write_text(path.read_text())
    done = moesim("run", "mine.yaml", "--set", "cluster.nodes=0")
    done.refused(2, "--set cluster.nodes: must be greater than 0")


def test_diff_tells_two_results_apart(moesim: Command) -> None:
    moesim("run", "tiny.yaml", "--json", "before.json").succeeded()
    moesim("run", "tiny.yaml", "--json", "after.json", "--set", "cluster.intra_bandwidth=100 GB/s").succeeded()
    same = moesim("diff", "before.json", "before.json").succeeded()
    assert re.fullmatch(r"0 of \d+ metrics of 1 plans differ\.\n", same.out)
    other = moesim("diff", "before.json", "after.json", "--json", "diff.json")
    assert other.code == 1
    assert "step_time_s" in other.out
    assert other.files == {"diff.json"}
    assert moesim("diff", "before.json", "after.json", "--limit", "1000").code == 0
    assert moesim("diff", "before.json", "tiny.yaml").code == 2
