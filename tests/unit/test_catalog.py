from pathlib import Path

import pytest

from scenarios import catalog
from scenarios.catalog import (
    find_model,
    find_scenario,
    find_trace,
    library_path,
    list_models,
    list_scenarios,
    list_traces,
)
from scenarios.errors import ScenarioError, TraceError
from scenarios.placement_specs import PlacementSpec
from scenarios.schema import scenario_schema
from scenarios.specs import ScenarioSpec

CARD = """\
name: {name}
sources: {{default: {{source: made up, kind: assumed}}}}
n_layers: 2
hidden_size: 8
vocab_size: 16
attention: {{kind: gqa, n_heads: 2, n_kv_heads: 1, head_dim: 4}}
n_experts: 4
top_k: 2
expert_intermediate_size: 8
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small library in place of the shipped one."""
    folder = tmp_path / "library"
    for name in ("tiny-moe", "tiny-moe-2"):
        _write(folder / "models" / f"{name}.yaml", CARD.format(name=name))
    _write(folder / "hardware" / "gpus.yaml", "devices: []\n")
    _write(folder / "examples" / "first.yaml", "name: first\n")
    _write(folder / "studies" / "a" / "second.yaml", "name: second\n")
    monkeypatch.setattr(catalog, "library_path", lambda: folder)
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _message(name: str, base: Path) -> str:
    with pytest.raises(ScenarioError) as caught:
        find_model(name, base)
    return str(caught.value)


@pytest.mark.usefixtures("library")
def test_models_are_listed_by_name() -> None:
    assert [card.name for card in list_models()] == ["tiny-moe", "tiny-moe-2"]


def test_a_card_is_found_by_name_and_by_path(library: Path, tmp_path: Path) -> None:
    _write(tmp_path / "cards" / "mine.yaml", CARD.format(name="mine"))
    assert find_model("tiny-moe-2", tmp_path).name == "tiny-moe-2"
    assert find_model("cards/mine.yaml", tmp_path).name == "mine"
    assert find_model(str(tmp_path / "cards" / "mine.yaml"), library).name == "mine"


def test_a_config_json_is_read_relative_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("scenarios.huggingface.read_config", asked.append)
    find_model("hf/config.json", tmp_path)
    assert asked == [tmp_path / "hf" / "config.json"]


@pytest.mark.usefixtures("library")
def test_unknown_models_get_the_nearest_name(tmp_path: Path) -> None:
    assert (
        _message("tiny-mo", tmp_path) == "no model card 'tiny-mo' (did you mean 'tiny-moe'?); see `moesim list models`"
    )
    assert _message("zzz", tmp_path) == "no model card 'zzz'; see `moesim list models`"
    assert _message("mine.yaml", tmp_path) == f"{tmp_path / 'mine.yaml'}: no such file (check the path)"


def test_a_shipped_card_has_the_name_of_its_file(library: Path, tmp_path: Path) -> None:
    path = library / "models" / "tiny-moe.yaml"
    path.write_text(CARD.format(name="other"))
    assert _message("tiny-moe", tmp_path) == f"{path}: the card is named 'other' (name it 'tiny-moe', as its file)"


def test_a_wrong_card_names_its_line(tmp_path: Path) -> None:
    card = tmp_path / "mine.yaml"
    card.write_text(CARD.format(name="mine").replace("kind: gqa", "kind: mamba") + "zzz: 3\n")
    assert _message("mine.yaml", tmp_path).splitlines() == [
        f"2 problems in {card}:",
        f"{card}:6 attention.kind: 'mamba' is not one of gqa, mla",
        f"{card}:10 zzz: unknown key (known: {', '.join(_model_keys())})",
    ]


def test_members_of_a_union_do_not_show_in_messages(tmp_path: Path) -> None:
    card = tmp_path / "mine.yaml"
    card.write_text(CARD.format(name="mine").replace("n_heads: 2", "n_head: 2"))
    assert _message("mine.yaml", tmp_path).splitlines() == [
        f"2 problems in {card}:",
        f"{card}:6 attention.n_heads: missing key",
        f"{card}:6 attention.n_head: unknown key (did you mean 'n_heads'?)",
    ]
    card.write_text(CARD.format(name="mine").replace("kind: gqa, ", ""))
    assert _message("mine.yaml", tmp_path) == f"{card}:6 attention.kind: missing key"


def _model_keys() -> list[str]:
    from scenarios.models import ModelCard

    return list(ModelCard.model_fields)


def test_scenarios_are_listed_without_cards(library: Path) -> None:
    assert list_scenarios() == [
        ("examples/first", library / "examples" / "first.yaml"),
        ("studies/a/second", library / "studies" / "a" / "second.yaml"),
    ]


def test_a_scenario_is_found_by_path_and_by_name(library: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\n")
    assert find_scenario(str(mine)) == mine
    assert find_scenario("examples/first") == library / "examples" / "first.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("example/frist", " (did you mean 'examples/first'?)"),
        ("second", " (did you mean 'studies/a/second'?)"),
        ("zzz.yaml", ""),
        (".", ""),
    ],
)
@pytest.mark.usefixtures("library")
def test_unknown_scenarios_get_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        find_scenario(name)
    message = f"no scenario file or shipped scenario '{name}'{hint}; see `moesim list scenarios`"
    assert str(caught.value) == message


def test_every_shipped_model_card_loads() -> None:
    cards = list_models()
    assert len(cards) == len(list((library_path() / "models").glob("*.yaml")))


def test_the_schema_describes_a_scenario() -> None:
    schema = scenario_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["name", "model", "cluster", "workload"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(ScenarioSpec.model_fields)
    scenario = {"name": "a", "model": "b", "cluster": {"node": "n"}, "workload": {"trace": "t.npz"}}
    assert _structural_faults(schema, schema, {**scenario, "compare": {"cluster": [{"nodes": 2}]}}) == []
    assert _structural_faults(schema, schema, {**scenario, "cluster": {"nodes": 2}}) == ["node"]
    assert _structural_faults(schema, schema, {**scenario, "compare": {"cluster": [{"size": 2}]}}) == ["size"]


def test_the_schema_lists_solver_names() -> None:
    placement = scenario_schema()["$defs"]["PlacementSpec"]["properties"]
    assert placement["solver"]["enum"] == list(PlacementSpec.model_fields["solver"].annotation.__args__)
    assert "eplb" in placement["solver"]["enum"]


def test_axis_entries_may_leave_keys_out() -> None:
    schema = scenario_schema()
    axes = schema["$defs"]["CompareSpec"]["properties"]
    assert axes["placement"]["items"] == {"$ref": "#/$defs/PlacementSpec"}
    assert axes["cluster"]["items"] == {"$ref": "#/$defs/ClusterSpecEntry"}
    assert "required" not in schema["$defs"]["ClusterSpecEntry"]
    assert schema["$defs"]["ClusterSpec"]["required"] == ["node"]


def _structural_faults(schema: dict, part: dict, value: object) -> list[str]:
    """Names of missing and unknown keys of `value`, following references and lists."""
    for alternative in part.get("anyOf", [part]):
        if "$ref" in alternative:
            part = schema["$defs"][alternative["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        return [fault for entry in value for fault in _structural_faults(schema, part["items"], entry)]
    if not isinstance(value, dict):
        return []
    known = part["properties"]
    faults = [key for key in part.get("required", []) if key not in value]
    faults += [key for key in value if key not in known]
    return faults + [
        fault for key in value if key in known for fault in _structural_faults(schema, known[key], value[key])
    ]


def test_a_trace_is_found_by_name_beside_the_scenario_and_in_the_working_directory(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (library / "traces" / "shipped.npz", tmp_path / "here" / "mine.npz", tmp_path / "there.npz"):
        _write(path, "")
    monkeypatch.chdir(tmp_path)
    assert [name for name, _ in list_traces()] == ["shipped"]
    assert find_trace("shipped", tmp_path) == library / "traces" / "shipped.npz"
    assert find_trace("mine.npz", tmp_path / "here") == tmp_path / "here" / "mine.npz"
    assert find_trace("there.npz", tmp_path / "here") == Path("there.npz")
    with pytest.raises(TraceError, match=r"no trace file .*shiped.* \(did you mean 'shipped'\?\)"):
        find_trace("shiped", tmp_path / "here")
