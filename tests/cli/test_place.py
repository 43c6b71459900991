"""`moesim place`: every solver, every format, plans of files in scenarios, explanations, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.formats import FORMATS
from placement.solve import SOLVERS
from tests.cli.command import CARD, SCENARIO
from tests.cli.conftest import Command
from tests.small import random_ids, trace_of
from traces.storage import save_trace

EPLB = ["--set", "placement={solver: eplb, redundant: 8}"]
PLANS = [name for name in FORMATS if name not in ("sglang-counts", "ktransformers", "exflow")]


def placed(moesim: Command, *arguments: str) -> dict[str, Any]:
    """The JSON of `moesim place tiny.yaml`, without the times that differ from run to run."""
    content: dict[str, Any] = json.loads(moesim("place", "tiny.yaml", *arguments, "--json", "-").succeeded().out)
    content["placement"].pop("solve_time_s")
    return content


def row(content: dict[str, Any]) -> dict[str, Any]:
    """The plan's own entry of `results`."""
    (found,) = (entry for entry in content["results"] if entry["name"] == content["placement"]["plan"])
    return dict(found)


OPTIONS = {
    "auto": "spare: [0, 1]",
    "joint": "redundant: 8",
    "migrate": "redundant: 8, current: now.json, moves: 9",
    "flexmoe": "redundant: 8, current: now.json",
    "smartmoe": "redundant: 8, current: now.json",
    "chain-exact": "redundant: 0",
    "ilp-saa": "redundant: 8, time_limit: 2 s",
} | dict.fromkeys(("alsa", "two-stage", "exflow", "ilp-affinity", "ilp-load"), "redundant: 0, time_limit: 2 s")
SLOW = ("auto", "joint", "exflow", "ilp-affinity", "ilp-load", "ilp-saa", "migrate", "flexmoe", "smartmoe")


@pytest.mark.parametrize(
    "solver", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SOLVERS]
)
def test_every_solver_states_objective_bound_and_gap(moesim: Command, folder: Path, solver: str) -> None:
    arguments = ["--set", f"placement={{solver: {solver}, {OPTIONS.get(solver, 'redundant: 8')}}}"]
    adjusts = SOLVERS[solver].adjusts  # type: ignore[index]
    if adjusts:
        moesim("place", "tiny.yaml", *EPLB, "--seed", "1", "--export", "moesim", "now.json").succeeded()
    if solver == "chain-exact":  # exact for few experts only
        (folder / "tiny-moe.yaml").write_text(CARD.replace("n_experts: 16", "n_experts: 8"))
        arguments += ["--set", "cluster.devices_per_node=4"]
    content = placed(moesim, *arguments)
    facts = content["placement"]
    own = [measure for measure in facts["objectives"] if measure["minimised"]]
    assert (facts["solver"], len(own)) == (solver, 1)
    assert facts["status"] in ("optimal", "stopped", "heuristic")
    assert facts["execution"] in ("home-return", "context-coherent", "any")
    assert {"load", "time"} <= {measure["name"] for measure in facts["objectives"]}
    for measure in facts["objectives"]:
        assert measure["value"] >= measure["bound"] * (1 - 1e-9) >= 0
        if measure["bound"] > 0:
            assert measure["gap"] == pytest.approx(measure["value"] / measure["bound"] - 1)
    assert (facts["status"] == "optimal") == (own[0]["value"] <= own[0]["bound"] * (1 + 1e-9))
    assert row(content)["metrics"]["load_imbalance"] >= 1

    assert (facts["moved_copies"] is not None) == adjusts
    assert solver != "migrate" or facts["moved_copies"] <= 9
    assert solver != "chain-exact" or facts["status"] == "optimal"


@pytest.mark.slow
def test_migrate_and_saa_are_measured_on_the_same_fitted_steps(moesim: Command) -> None:
    moesim("place", "tiny.yaml", *EPLB, "--export", "moesim", "now.json").succeeded()
    own = []
    for solver in ("saa", "migrate"):
        options = f"placement={{solver: {solver}, {OPTIONS.get(solver, 'redundant: 8')}}}"
        measures = placed(moesim, "--set", options)["placement"]["objectives"]
        own.append(next(measure for measure in measures if measure["minimised"]))
    assert [measure["name"] for measure in own] == ["batch-load"] * 2
    assert own[0]["bound"] == own[1]["bound"] == 64 * 2 * 3 / 8  # tokens of a step, top-k, layers, even on 8 ranks


def test_tables_show_the_plan_beside_experts_in_order_and_eplb(moesim: Command) -> None:
    done = moesim("place", "tiny.yaml", "--set", "placement.solver=greedy").succeeded()
    assert done.files == set()
    for text in ("greedy: greedy, ", "load (minimised)", "lower bound", "contiguous", "eplb+8", "fitted on"):
        assert text in done.out
    rows = [line.split()[1] for line in done.out.splitlines() if line[:3] in ("1  ", "2  ", "3  ")]
    assert sorted(rows) == ["contiguous", "eplb+8", "greedy"]


def two_domains(path: Path) -> None:
    """A trace of the tiny model: `chat` visits the lower half of the experts, `code` the upper half."""
    ids = random_ids((3, 2, 1024), 8, seed=3)
    ids[:, :, 512:] += 8
    labels = tuple(["chat"] * 16 + ["code"] * 16)
    save_trace(trace_of(ids, 16, [32] * 32, moe_layers=(0, 1, 2), labels=labels), path)


def test_plans_are_judged_on_a_domain_that_they_never_saw(moesim: Command, folder: Path) -> None:
    two_domains(folder / "two.npz")
    trace = ["--set", "workload={trace: two.npz, tokens_per_device: 8, steps: 8, split: {shifted: code}}"]
    facts = placed(moesim, *trace, "--export", "sglang-counts", "c.json")["placement"]
    parts = {part["name"]: part for part in facts["judgement"]["parts"]}
    assert list(parts) == ["fitted", "held out", "shifted: code"]
    assert (facts["judgement"]["reference"], facts["judgement"]["overfit"]) == ("eplb+8", False)
    for part in parts.values():
        assert part["low"] <= part["over_eplb"] <= part["high"]
        assert 0 < part["fixed_frac"] < 1
    fitted = np.array(json.loads(Path("c.json").read_text())["logical_count"])
    assert (fitted[:, 8:] == 0).all()  # nothing of `code` was seen
    assert fitted.sum() == 3 * 2 * 32 * 8  # layers, top-k, tokens of a sequence, half of the other domain
    wrong = ["--set", "workload={trace: two.npz, split: {shifted: cod}}"]
    moesim("place", "tiny.yaml", *wrong).refused(2, "no sequence has the label 'cod' (did you mean 'code'?)")


def test_a_plan_is_not_compared_with_itself(moesim: Command) -> None:
    for own in (["--set", "placement.solver=contiguous"], EPLB):
        assert sorted(entry["name"] for entry in placed(moesim, *own)["results"]) == ["contiguous", "eplb+8"]


@pytest.mark.parametrize("format", PLANS)
def test_an_exported_plan_does_what_the_solved_one_did(moesim: Command, format: str) -> None:
    file = f"p{FORMATS[format].suffixes[0]}"
    solved = placed(moesim, *EPLB, "--export", format, file)
    read = placed(moesim, "--import", file)
    assert (read["placement"]["solver"], read["placement"]["status"]) == (f"file ({format})", "read")
    assert row(read)["metrics"] == row(solved)["metrics"]
    values = [{m["name"]: m["value"] for m in c["placement"]["objectives"]} for c in (solved, read)]
    assert values[0] == values[1]


def test_exflow_keeps_a_plan_without_replicas(moesim: Command) -> None:
    solved = placed(moesim, "--set", "placement.solver=greedy", "--export", "exflow", "p.csv")
    read = placed(moesim, "--import", "p.csv")
    for name in ("step_time_s", "load_imbalance", "devices_per_token"):
        assert row(read)["metrics"][name] == pytest.approx(row(solved)["metrics"][name], rel=1e-12)


def test_counts_become_the_plan_that_the_engine_would_make_of_them(moesim: Command) -> None:
    solved = placed(moesim, *EPLB, "--export", "sglang-counts", "c.json")
    read = placed(moesim, "--import", "c.json", "--set", "placement.redundant=8")
    assert read["placement"]["plan"] == "eplb of c.json +8"
    assert row(read)["metrics"] == row(solved)["metrics"]


@pytest.mark.slow
def test_scenarios_name_files_of_plans(moesim: Command, folder: Path) -> None:
    moesim("place", "tiny.yaml", *EPLB, "--export", "moesim", "plan.json").succeeded()
    text = SCENARIO.replace("{solver: greedy}", "{file: plan.json}")
    (folder / "tiny.yaml").write_text(text)
    rows = json.loads(moesim("compare", "tiny.yaml", "--json", "-").succeeded().out)["results"]
    by_name = {entry["name"]: entry for entry in rows}
    assert set(by_name) == {"contiguous", "eplb+8", "eplb+8 (plan.json)"}
    assert by_name["eplb+8"]["metrics"] == by_name["eplb+8 (plan.json)"]["metrics"]
    read = by_name["eplb+8 (plan.json)"]["plan"]["placement"]
    assert (read["solver"], read["file"]) == ("file", "plan.json")
    levelled = moesim("run", "tiny.yaml", "--set", "placement={file: plan.json, split: least-loaded}", "--json", "-")
    (entry,) = json.loads(levelled.succeeded().out)["results"]
    assert entry["metrics"]["load_imbalance"] < by_name["eplb+8"]["metrics"]["load_imbalance"]


@pytest.mark.slow
def test_the_explanation_answers_with_numbers(moesim: Command) -> None:
    arguments = [*EPLB, "--set", "workload.steps=10", "--set", "workload.synthetic.tokens=2048"]
    told = placed(moesim, *arguments, "--explain")["placement"]["explain"]
    layers = told["binding"]["layers"]
    assert sorted(layer["layer"] for layer in layers) == [0, 1, 2]
    assert [layer["excess_s"] for layer in layers] == sorted((layer["excess_s"] for layer in layers), reverse=True)
    assert sum(rank["slowest_frac"] for rank in told["binding"]["ranks"]) == pytest.approx(1)
    assert 1 <= told["binding"]["imbalance_split"] <= told["binding"]["imbalance_even"]
    levers = {lever["name"]: lever for lever in told["levers"]}
    assert levers["links inside nodes twice as fast"]["gain"] > 0
    assert levers["one node more (2)"]["plan"].startswith("eplb")
    assert [case["redundant"] for case in told["eplb"]["cases"]] == [0, 8, 16]
    text = moesim("place", "tiny.yaml", *arguments, "--explain").succeeded().out
    for part in ("Layers that bind", "Levers, simulated", "EPLB against experts in order", "Will EPLB help here?"):
        assert part in text


@pytest.mark.slow
def test_the_folder_holds_report_pictures_and_the_plan(moesim: Command) -> None:
    done = moesim("place", "tiny.yaml", *EPLB, "--out", "out").succeeded()
    pictures = {f"out/plots/{name}.png" for name in ("device-load", "links", "traffic")}
    assert done.files >= {"out/plan.json", "out/report.html", "out/result.json", *pictures}
    assert json.loads(Path("out/result.json").read_text())["placement"]["plan"] == "eplb+8"
    assert row(placed(moesim, "--import", "out/plan.json"))["metrics"] == row(placed(moesim, *EPLB))["metrics"]


def test_layers_share_a_budget_of_replicas(moesim: Command) -> None:
    shared = ["--set", "placement={solver: eplb, total_redundant: 16, spare: [0, 1, 2]}"]
    solved = placed(moesim, *shared, "--export", "moesim", "p.json")
    slots = solved["placement"]["replica_slots"]
    assert solved["placement"]["plan"] == "eplb+16 shared"
    assert sum(slots) <= 16
    assert set(slots) <= {0, 8, 16}
    read = placed(moesim, "--import", "p.json")
    assert row(read)["metrics"] == row(solved)["metrics"]
    values = [{m["name"]: m["value"] for m in content["placement"]["objectives"]} for content in (solved, read)]
    assert values[0] == values[1]
    refused = moesim("place", "tiny.yaml", *shared, "--export", "sglang", "p2.json")
    refused.refused(2, "export it as 'moesim', or solve with equal ranks and layers")


WIDTHS = "widths: [{bits: 2, bytes: 0.25, error: 0.3}, {bits: 4, bytes: 0.5, error: 0.1}]"


def test_bits_and_tiers_are_answered_beside_the_plan(moesim: Command) -> None:
    bits = ["--set", f"bits={{mean_bits: 3, each: [2], {WIDTHS}}}"]
    facts = placed(moesim, *bits, "--set", "tiers={device: 1 MiB, host: 1 GiB}")["placement"]
    widths = np.array(facts["bits"]["bits"])
    assert widths.shape == (3, 16)
    assert widths.mean() == 3
    assert (widths == 2).any(axis=1).all()
    assert facts["bits"]["bound"] * (1 - 1e-9) <= facts["bits"]["loss"] < facts["bits"]["even_loss"]
    assert facts["bits"]["held_out_best"] * (1 - 1e-9) <= facts["bits"]["held_out"]
    # Three matrices of 512 x 256 in bf16 take 0.75 MiB, 4-bit ones 0.375 MiB: two experts of a layer and rank.
    size_bytes = 3 * 512 * 256 * 2 * np.where(widths == 2, 0.25, 0.5)
    resident = np.array(facts["tiers"]["resident"])
    held = (size_bytes * resident).reshape(3, 8, 2).sum(axis=(0, 2))
    assert held.max() <= 2**20
    assert facts["tiers"]["hit_frac"] >= facts["tiers"]["in_order_hit_frac"]
    assert facts["tiers"]["copy_s"] >= facts["tiers"]["bound_s"] * (1 - 1e-9) > 0
    text = moesim("place", "tiny.yaml", *bits, "--set", "tiers={device: 1 MiB}").succeeded().out
    for part in ("Bits of experts: optimal", "Memory tiers of experts: optimal", "these copies come on top"):
        assert part in text


def test_experts_beyond_device_memory_need_tiers(moesim: Command) -> None:
    too_large = ["--set", "memory.reserve=0.9999"]
    moesim("place", "tiny.yaml", *too_large).refused(3, "short by")
    facts = placed(moesim, *too_large, "--set", "tiers={}")["placement"]
    assert facts["tiers"]["device_bytes"] < 2**24
    assert 0 <= facts["tiers"]["hit_frac"] < 1


def test_the_terminal_hears_who_takes_an_export(moesim: Command) -> None:
    done = moesim("place", "tiny.yaml", "--export", "tensorrt-llm", "p.yaml").succeeded()
    assert done.files == {"p.yaml"}
    assert "Exported: p.yaml (TensorRT-LLM: moe_config.load_balancer)" in done.out


def test_quiet_prints_nothing(moesim: Command) -> None:
    done = moesim("place", "tiny.yaml", "--quiet", "--json", "r.json", "--export", "eplb", "p.npy").succeeded()
    assert (done.out, done.files) == ("", {"r.json", "p.npy"})


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        (["--export", "sglan", "p.json"], 2, ["unknown plan format 'sglan'; did you mean 'sglang'?"]),
        (["--export", "sglang", "p.txt"], 2, ["p.txt: a file of format sglang ends in .json"]),
        (["--export", "sglang", "no/p.json"], 2, ["no/p.json: cannot be written (there is no folder no)"]),
        ([*EPLB, "--export", "exflow", "p.csv"], 2, ["p.csv: exflow has one GPU for each expert", "8 redundant slots"]),
        (["--import", "p.json"], 2, ["p.json: no such plan file"]),
        (["--set", "placement={file: p.json}"], 2, ["p.json: no such plan file"]),
        (["--set", "placement={file: p.json, solver: eplb}"], 2, ["a plan is either solved"]),
        (["--set", "placement.solver=file"], 2, ["a plan is either solved ('solver: NAME') or read ('file: FILE')"]),
        (["--set", "placement.redundant=3"], 3, ["16 experts + 3 redundant = 19 slots do not divide over 8 ranks"]),
        (["--set", "placement.redundant=128"], 3, ["16 experts on 8 ranks can use at most 112"]),
        (["--set", "placement.solver=migrate"], 2, ["needs current", "name the file of the plan in force"]),
        (["--set", "placement={solver: eplb, total_redundant: 8, redundant: 8}"], 2, ["leave redundant out"]),
        (["--set", "placement={file: p.json, total_redundant: 8}"], 2, ["name a solver other than auto"]),
        (["--set", "placement={solver: alsa, total_redundant: 8}"], 2, ["cannot share total_redundant"]),
        (["--set", "placement={solver: eplb, total_redundant: 8, spare: [1]}"], 3, ["16 short", "fewer `spare` slots"]),
        (["--set", "placement={solver: eplb, total_redundant: 8, spare: [99]}"], 3, ["none of spare [99]"]),
        (["--set", f"bits={{mean_bits: 1, {WIDTHS}}}"], 3, ["below the lightest width, 2: 1 short"]),
        (["--set", f"bits={{mean_bits: 3, each: [8], {WIDTHS}}}"], 2, ["each names [8.0]"]),
        (["--set", "tiers={device: 1 MiB, host: 1 MiB}"], 3, ["GiB short; enlarge a tier"]),
        (["--set", "tiers={}", "--set", "cluster.node=h800-8"], 2, ["has no host; name a node card with one"]),
        (["--set", "placement.current=p.json"], 2, ["current is the plan that", "solver contiguous has no use for it"]),
        (["--set", "placement={solver: alsa, redundant: 8}"], 3, ["set redundant 0"]),
        (["--set", "placement={solver: chain-exact}"], 3, ["experts"]),
        (["--set", "memory.reserve=0.9999"], 3, ["short by", "Levers: fewer than 8 redundant slots, more"]),
    ],
)
def test_what_cannot_be_is_refused(moesim: Command, arguments: list[str], code: int, texts: list[str]) -> None:
    moesim("place", "tiny.yaml", *arguments).refused(code, *texts)


@pytest.mark.slow
def test_plans_for_something_else_are_refused(moesim: Command, folder: Path) -> None:
    moesim("place", "tiny.yaml", *EPLB, "--export", "moesim", "own.json").succeeded()
    moesim("place", "tiny.yaml", *EPLB, "--export", "sglang", "map.json").succeeded()
    (folder / "tiny-moe.yaml").write_text(CARD.replace("name: tiny-moe", "name: other-moe"))
    moesim("place", "tiny.yaml", "--import", "own.json").refused(2, "own.json: the plan is for model tiny-moe instead")
    (folder / "tiny-moe.yaml").write_text(CARD.replace("n_layers: 3", "n_layers: 4"))
    moesim("place", "tiny.yaml", "--import", "map.json").refused(2, "map.json: physical_to_logical_map has 3 layers")
    (folder / "tiny-moe.yaml").write_text(CARD.replace("n_experts: 16", "n_experts: 32"))
    moesim("place", "tiny.yaml", "--import", "map.json").refused(2, "expert 16 of layer 0 has no slot")
    (folder / "tiny-moe.yaml").write_text(CARD)
    stated = ["--import", "map.json", "--set", "placement.redundant=16"]
    moesim("place", "tiny.yaml", *stated).refused(2, "the plan has 8 redundant slots, not 16; leave redundant out")
    sixteen = ["--set", "cluster.nodes=2", "--import", "own.json"]
    moesim("place", "tiny.yaml", *sixteen).refused(2, "ranks 8 instead of 16")


def test_statistics_without_an_expert_are_refused(moesim: Command, folder: Path) -> None:
    (folder / "c.json").write_text(json.dumps({"logical_count": np.ones((3, 15), int).tolist()}))
    moesim("place", "tiny.yaml", "--import", "c.json").refused(2, "c.json: logical_count has 15 experts", "has 16")
