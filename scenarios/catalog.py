"""What is shipped, by name: model cards, scenarios and traces, and how files of the user stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scenarios.errors import ScenarioError, TraceError
from scenarios.explain import did_you_mean, told
from scenarios.loader import load_spec
from scenarios.models import ModelCard
from scenarios.yaml_source import printable

SCENARIO_SOURCE = {"source": "scenario", "kind": "assumed"}
_FILE_SUFFIXES = {".yaml", ".yml", ".json"}
_CARD_FOLDERS = {"models", "hardware", "papers"}


def library_path() -> Path:
    """Folder of the shipped YAML files."""
    return Path(__file__).parent / "library"


def find_model(name_or_path: str | Mapping[str, Any], base: Path) -> ModelCard:
    """The model card of a shipped name, a card file, or a Hugging Face config.json; paths start at folder `base`.

    Keys beside `card` change single numbers of that card; without `card` they are a whole card.
    Raises ScenarioError with the nearest names where there is none, or for numbers that make no card.
    """
    if isinstance(name_or_path, Mapping):
        return _changed_model(dict(name_or_path), base)
    shipped = _model_paths().get(name_or_path)
    if shipped is not None:
        return _shipped_model(shipped)
    path = base / name_or_path
    if path.suffix.lower() == ".json":
        from scenarios.huggingface import read_config

        return read_config(path)
    if path.suffix.lower() in _FILE_SUFFIXES:
        return load_spec(path, ModelCard)
    raise _unknown("model card", name_or_path, list(_model_paths()), "moesim list models")


def _changed_model(changes: dict[str, Any], base: Path) -> ModelCard:
    """The card `changes["card"]` with its other entries; a section such as `attention` is replaced as a whole."""
    named = changes.pop("card", None)
    content: dict[str, Any] = {"name": "model of the scenario", "sources": {"default": SCENARIO_SOURCE}}
    if named is not None:
        card = find_model(named, base)
        content = card.model_dump(exclude_unset=True) | {"name": f"{card.name} changed"}
        content["sources"] |= dict.fromkeys(sorted(set(changes) - {"name", "sources", "note"}), SCENARIO_SOURCE)
    content |= changes
    try:
        return ModelCard.model_validate(content)
    except ValidationError as error:
        raise ScenarioError(told(error, content, ModelCard)) from None


def list_models() -> list[ModelCard]:
    """All shipped model cards, by name."""
    return [_shipped_model(path) for path in _model_paths().values()]


def find_scenario(name_or_path: str) -> Path:
    """Path of a scenario: an existing file, or a shipped scenario's name such as `examples/first`.

    Raises ScenarioError with the nearest names where there is none.
    """
    path = Path(name_or_path)
    if _is_there(path) and not path.is_dir():
        return path
    shipped = dict(list_scenarios())
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise _unknown("scenario file or shipped scenario", name_or_path, list(shipped), "moesim list scenarios")


def list_scenarios() -> list[tuple[str, Path]]:
    """Name and path of every shipped scenario, by name."""
    library = library_path()
    names = {path.relative_to(library).with_suffix(""): path for path in library.rglob("*.yaml")}
    return sorted((name.as_posix(), path) for name, path in names.items() if name.parts[0] not in _CARD_FOLDERS)


def find_paper(name_or_path: str) -> Path:
    """Path of a file of published results: an existing file, or the name of a shipped system.

    Raises ScenarioError with the nearest names where there is none.
    """
    path, shipped = Path(name_or_path), dict(list_papers())
    if name_or_path in shipped:
        return shipped[name_or_path]
    if _is_there(path) and not path.is_dir():
        return path
    raise _unknown("system", name_or_path, list(shipped), "moesim list papers")


def list_papers() -> list[tuple[str, Path]]:
    """Name and path of every shipped file of published results, by name."""
    return sorted((path.stem, path) for path in (library_path() / "papers").glob("*.yaml"))


def find_trace(name_or_path: str, base: Path = Path()) -> Path:
    """Path of a routing trace: a shipped name, or a file in folder `base`, or else in the working directory.

    Raises TraceError with the nearest shipped name where there is none.
    """
    shipped = dict(list_traces())
    if name_or_path in shipped:
        return shipped[name_or_path]
    places = dict.fromkeys([base / name_or_path, Path(name_or_path)])
    found = [path for path in places if path.is_file()]
    if not found:
        hint = did_you_mean(name_or_path, list(shipped))
        named = " or ".join(map(str, places))
        raise TraceError(
            f"no trace file {named}{hint}; `moesim trace import` makes one, `moesim list traces` shows the shipped"
        )
    return found[0]


def list_traces() -> list[tuple[str, Path]]:
    """Name and path of every shipped routing trace, by name."""
    return sorted((path.stem, path) for path in (library_path() / "traces").glob("*.npz"))


def _model_paths() -> dict[str, Path]:
    paths = (library_path() / "models").glob("*.yaml")
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def _shipped_model(path: Path) -> ModelCard:
    card = load_spec(path, ModelCard)
    if card.name != path.stem:
        raise ScenarioError(f"{path}: the card is named '{card.name}' (name it '{path.stem}', as its file)")
    return card


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _unknown(kind: str, name: str, known: list[str], command: str) -> ScenarioError:
    by_last_part = {name.rpartition("/")[2]: name for name in known}
    hint = did_you_mean(name, known)
    if not hint and name in by_last_part:
        hint = f" (did you mean '{by_last_part[name]}'?)"
    return ScenarioError(printable(f"no {kind} '{name[:200]}'{hint}; see `{command}`"))
