"""Every plan format: written and read back it is the same plan, and other readers find in it what their sources say.

The readers of SGLang, TensorRT-LLM and KTransformers are rebuilt here from their sources, in plain loops.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from placement.formats import FORMATS, export_plan, format_of, import_plan
from placement.formats.contents import Deployment, PlanFile
from placement.plan import Placement
from placement.solve import solve
from scenarios.errors import PlacementError
from scenarios.placement_specs import PlacementSpec
from tests.unit.test_eplb import LOADS, PUBLISHED, PUBLISHED_COUNTS, example

COUNTING = {"sglang-counts", "ktransformers"}
FILES = [
    pytest.param(name, suffix, marks=pytest.mark.slow if suffix == ".pt" else ())  # PyTorch takes a second to import
    for name, format in FORMATS.items()
    for suffix in format.suffixes
]
DENSE_FIRST = Deployment(model="toy", n_layers=4, moe_layers=(1, 3), n_experts=12, n_ranks=8)


def published() -> PlanFile:
    """EPLB's published example as the MoE layers 1 and 3 of a model of 4 layers."""
    plan = solve(example(), PlacementSpec(solver="eplb", redundant=4)).placement
    assert plan.expert_of_slot.tolist() == PUBLISHED
    return PlanFile(placement=plan, deployment=DENSE_FIRST, loads=LOADS.astype(np.int64))


def without_replicas() -> PlanFile:
    """Ranks 0..3 hold experts that descend, three a rank."""
    deployment = Deployment(model="toy", n_layers=2, moe_layers=(0, 1), n_experts=12, n_ranks=4)
    slots = np.stack([np.arange(12)[::-1], np.roll(np.arange(12), 5)])
    plan = Placement.from_slots(slots, 4, n_experts=12, name="descending")
    return PlanFile(placement=plan, deployment=deployment, loads=LOADS.astype(np.int64))


def written(content: PlanFile, format: str, folder: Path, suffix: str | None = None) -> Path:
    path = folder / f"plan{suffix or FORMATS[format].suffixes[0]}"
    if path.suffix == ".pt":
        pytest.importorskip("torch")
    export_plan(format, content, path)
    return path


@pytest.mark.parametrize(("format", "suffix"), FILES)
def test_what_was_written_is_read_back(tmp_path: Path, format: str, suffix: str) -> None:
    content = without_replicas() if format == "exflow" else published()
    path = written(content, format, tmp_path, suffix)
    assert format_of(path) == format
    back = import_plan(path, content.deployment)
    if format in COUNTING:
        assert not isinstance(back, Placement)
        assert back.tolist() == content.loads.tolist()
        return
    assert isinstance(back, Placement)
    assert back.rank_of_slot.tolist() == content.placement.rank_of_slot.tolist()
    if format == "exflow":  # keeps the rank of every expert, not their order
        assert [sorted(rank) for rank in back.expert_of_slot.reshape(-1, 3).tolist()] == [
            sorted(rank) for rank in content.placement.expert_of_slot.reshape(-1, 3).tolist()
        ]
    else:
        assert back.expert_of_slot.tolist() == PUBLISHED
    again = written(PlanFile(placement=back, deployment=content.deployment, loads=content.loads), format, tmp_path)
    assert format != "moesim" or again.read_bytes() == path.read_bytes()


def test_own_format_keeps_name_split_and_unequal_ranks(tmp_path: Path) -> None:
    deployment = Deployment(model="toy", n_layers=1, moe_layers=(0,), n_experts=3, n_ranks=3)
    plan = Placement(
        expert_of_slot=np.array([[2, 0, 1, 2]]),
        rank_of_slot=np.array([[0, 0, 2, 2]]),
        n_experts=3,
        n_ranks=3,
        split="least-loaded",
        name="two of three",
    )
    content = PlanFile(placement=plan, deployment=deployment, loads=np.array([[1, 2, 3]]))
    back = import_plan(written(content, "moesim", tmp_path), deployment)
    assert isinstance(back, Placement)
    assert (back.name, back.split) == ("two of three", "least-loaded")
    assert back.slots_per_rank().tolist() == [[2, 0, 2]]
    for format in ("sglang", "tensorrt-llm", "eplb"):
        with pytest.raises(PlacementError, match="hold 0 to 2 slots; export it as 'moesim'"):
            written(content, format, tmp_path)


def test_sglang_finds_one_key_and_a_map_of_all_hidden_layers(tmp_path: Path) -> None:
    """As `init_by_mapping(**data_dict)` and `_compute_logical_to_all_physical_map` read it."""
    content = json.loads(written(published(), "sglang", tmp_path).read_text())
    assert list(content) == ["physical_to_logical_map"]
    table = content["physical_to_logical_map"]
    assert [len(row) for row in table] == [16] * 4
    assert [table[1], table[3]] == PUBLISHED
    assert table[0] == table[2] == [slot % 12 for slot in range(16)]
    physical = [[[slot for slot, held in enumerate(row) if held == expert] for expert in range(12)] for row in table]
    assert all(slots for row in physical for slots in row)
    assert [[len(slots) for slots in physical[layer]] for layer in (1, 3)] == PUBLISHED_COUNTS


def test_sglang_counts_are_two_or_three_levels_deep(tmp_path: Path) -> None:
    counts = json.loads(written(published(), "sglang-counts", tmp_path).read_text())
    assert counts == {"logical_count": [[0] * 12, LOADS[0].tolist(), [0] * 12, LOADS[1].tolist()]}
    steps = tmp_path / "steps.json"
    steps.write_text(json.dumps({"logical_count": [counts["logical_count"]] * 3}))
    summed = import_plan(steps, DENSE_FIRST)
    assert not isinstance(summed, Placement)
    assert summed.tolist() == (3 * LOADS).tolist()


@pytest.mark.slow
def test_ktransformers_finds_a_recorder_dump(tmp_path: Path) -> None:
    """Keys, dtype and axes of `expert_distribution_recorder_*.pt` in mode stat, read with weights_only."""
    torch = pytest.importorskip("torch")
    dump = torch.load(written(published(), "ktransformers", tmp_path), weights_only=True)
    assert set(dump) == {"rank", "logical_count", "average_utilization_rate_over_window"}
    assert (dump["logical_count"].dtype, tuple(dump["logical_count"].shape)) == (torch.int32, (1, 4, 12))
    assert dump["logical_count"][0, 3].tolist() == LOADS[1].tolist()


def test_tensorrt_llm_finds_model_layer_numbers(tmp_path: Path) -> None:
    content = yaml.safe_load(written(published(), "tensorrt-llm", tmp_path).read_text())
    assert content == {
        "num_slots": 16,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": {1: PUBLISHED[0], 3: PUBLISHED[1]},
    }


def test_eplb_tensors_are_those_of_the_published_call(tmp_path: Path) -> None:
    with np.load(written(published(), "eplb", tmp_path), allow_pickle=False) as tensors:
        assert tensors["physical_to_logical_map"].tolist() == PUBLISHED
        assert tensors["expert_count"].tolist() == PUBLISHED_COUNTS
        inverse = tensors["logical_to_physical_map"]
    assert inverse.shape == (2, 12, 2)
    for layer, row in enumerate(PUBLISHED):
        for expert in range(12):
            slots = [slot for slot, held in enumerate(row) if held == expert]
            assert inverse[layer, expert].tolist() == slots + [-1] * (2 - len(slots))
    assert np.load(written(published(), "eplb", tmp_path, ".npy")).tolist() == PUBLISHED


def test_exflow_numbers_experts_over_all_layers(tmp_path: Path) -> None:
    lines = written(without_replicas(), "exflow", tmp_path).read_text().splitlines()
    assert lines[:3] == ["Expert,Node", "0,3", "1,3"]
    assert lines[1 + 12 + 7 : 1 + 12 + 10] == ["19,0", "20,0", "21,0"]  # layer 1 begins with experts 7, 8, 9
    with pytest.raises(PlacementError, match="4 redundant slots; solve without"):
        written(published(), "exflow", tmp_path)


BAD_FILES: list[tuple[str, Any, str]] = [
    ("p.json", "{", "not valid JSON"),
    ("p.json", {"map": []}, "holds none of moesim_placement, physical_to_logical_map, logical_count"),
    ("p.json", {"physical_to_logical_map": PUBLISHED}, "has 2 layers, but toy has 4 hidden layers (dense layers"),
    ("p.json", {"physical_to_logical_map": [[0, 1], [0]]}, "not a regular array"),
    ("p.json", {"physical_to_logical_map": [list(range(15))] * 4}, "15 slots do not divide evenly over 8 ranks"),
    ("p.json", {"physical_to_logical_map": [[0, 1, 2, 3] * 4] * 4}, "expert 4 of layer 0 has no slot (16 such experts"),
    ("p.json", {"physical_to_logical_map": [list(range(16))] * 4}, "layer 0, slot 12 holds 12, not in 0..11"),
    ("p.json", {"physical_to_logical_map": [[-1] * 16] * 4}, "holds -1, not in 0..11"),
    ("p.json", {"physical_to_logical_map": [[0.5] * 16] * 4}, "expected whole numbers"),
    ("p.json", {"logical_count": [[5] * 12] * 3}, "has 3 layers, but toy has 4 hidden layers"),
    ("p.json", {"logical_count": [[5] * 11] * 4}, "has 11 experts, but toy has 12"),
    ("p.json", {"logical_count": [[5] * 12, [0] * 12, [5] * 12, [5] * 12]}, "is 0 in 1 MoE layers, such as [1]"),
    ("p.json", {"logical_count": [[-5] * 12] * 4}, "a count is negative (-5)"),
    ("p.yaml", "num_slots: 16\ninitial_global_assignments: {1: [0]}\n", "lacks MoE layers [3]"),
    ("p.yaml", "num_slots: 16\ninitial_global_assignments: {1: [0], 3: [0], 5: [0]}\n", "names layers [5] that toy"),
    ("p.yaml", "num_slots: 2\ninitial_global_assignments: {1: [0], 3: [0]}\n", "num_slots is 2, but layers have 1"),
    ("p.yaml", "num_slots: 2\ninitial_global_assignments: {a: [0]}\n", "'a' is no layer number"),
    ("p.yaml", "num_slots: 2\n", "lacks 'initial_global_assignments'"),
    ("p.csv", "Expert;Node\n", "the header must start with Expert,Node"),
    ("p.csv", "Expert,Node\n0,0\n", "23 of 24 experts have no GPU, the first is 1"),
    ("p.csv", "Expert,Node\n0,0\n0,1\n", "line 3: expert 0 has a GPU already"),
    ("p.csv", "Expert,Node\n0,\x1c2\n", "is not a whole number; export the file again"),
    ("p.csv", "Expert,Node\n0,8\n", "expert 0 on GPU 8, but toy has 24 experts in all and the plan 8 ranks"),
    ("p.npy", b"\x93NUMPY", "not a readable .npy array"),
    ("p.npz", b"PK", "p.npz"),
    ("p.txt", "0 1", "files of plans end in .csv, .json, .npy, .npz, .pt, .yaml, .yml, not in '.txt'"),
]


@pytest.mark.parametrize(("name", "content", "text"), BAD_FILES)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, name: str, content: Any, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else _text(content).encode())
    with pytest.raises(Exception) as caught:
        import_plan(path, DENSE_FIRST)
    assert getattr(caught.value, "exit_code", None) == 2
    assert str(caught.value).startswith(str(path))
    assert text in str(caught.value)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "other"}, "the plan is for model other instead of toy"),
        ({"n_ranks": 4}, "ranks 4 instead of 8"),
        ({"n_experts": 8, "moe_layers": [0, 1]}, "experts 8 instead of 12, MoE layers [0, 1] instead of [1, 3]"),
        ({"split": "odd"}, "split is 'odd', not one of even"),
        ({"split": None}, "misstates 'split'"),
        ({"moesim_placement": 2}, "no 'moesim_placement: 1' inside"),
        ({"rank_of_slot": [[1] * 15 + [0]] * 2}, "rank_of_slot decreases after slot 14 of layer 0"),
    ],
)
def test_an_own_plan_for_something_else_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = written(published(), "moesim", tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PlacementError) as caught:
        import_plan(path, DENSE_FIRST)
    assert text in str(caught.value)


def test_tensors_that_contradict_the_map_are_refused(tmp_path: Path) -> None:
    path = written(published(), "eplb", tmp_path)
    with np.load(path) as tensors:
        good = dict(tensors)
    for name, text in (("expert_count", "does not count the slots"), ("logical_to_physical_map", "is not the inverse")):
        wrong = good[name].copy()
        wrong[0, 0] = wrong[0, 1]
        np.savez(path, **(good | {name: wrong}))
        with pytest.raises(PlacementError, match=text):
            import_plan(path, DENSE_FIRST)
    wide = np.pad(good["logical_to_physical_map"], ((0, 0), (0, 0), (0, 3)), constant_values=-1)
    np.savez(path, **(good | {"logical_to_physical_map": wide}))  # the reference pads to the most copies possible
    assert isinstance(import_plan(path, DENSE_FIRST), Placement)


@pytest.mark.parametrize(
    ("format", "name", "text"),
    [
        ("sglan", "p.json", "unknown plan format 'sglan'; did you mean 'sglang'?"),
        ("sglang", "p.txt", "p.txt: a file of format sglang ends in .json"),
        ("eplb", "p", "ends in .npz or .npy or .pt"),
    ],
)
def test_exports_under_a_wrong_name_are_refused(tmp_path: Path, format: str, name: str, text: str) -> None:
    with pytest.raises(PlacementError) as caught:
        export_plan(format, published(), tmp_path / name)
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_another_deployment_is_not_exported() -> None:
    content = published()
    with pytest.raises(PlacementError, match=r"plan 'eplb\+4' is for \(2, 12, 8\)"):
        PlanFile(placement=content.placement, deployment=without_replicas().deployment, loads=content.loads)
