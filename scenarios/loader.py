"""From YAML files to checked specs; all problems of a file are reported together, each with its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from scenarios.errors import ScenarioError
from scenarios.explain import problems_of
from scenarios.overrides import Overrides, apply_overrides, plain
from scenarios.specs import ScenarioSpec
from scenarios.yaml_source import KeyPath, Problem, YamlSource, problems_error, scan_yaml

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedScenario:
    """A checked scenario with its file: paths in it are relative to `path.parent`."""

    spec: ScenarioSpec
    path: Path
    source: YamlSource

    def error(self, keys: KeyPath, text: str) -> ScenarioError:
        """The error that something later found wrong with `keys`, with their line: `file:line keys: text`."""
        return problems_error(self.path, [Problem(place=self.source.place(keys), keys=keys, text=text)])


def load_scenario(path: Path, overrides: Overrides = ()) -> LoadedScenario:
    """The scenario of a YAML file, changed by overrides (`a.b.c=value`, or path -> value).

    Raises ScenarioError with one line for each problem.
    """
    spec, source = _load(path, ScenarioSpec, overrides)
    return LoadedScenario(spec=spec, path=path, source=source)


def scenario_of(content: Mapping[str, Any], folder: Path, overrides: Overrides = ()) -> LoadedScenario:
    """The scenario of values of Python, laid out as in a YAML file; paths in it are relative to `folder`.

    Raises ScenarioError with one line for each problem.
    """
    path = folder / "scenario"
    try:
        source = YamlSource(path=path, data=plain(content), places={(): "scenario"})
    except ValueError as error:
        raise ScenarioError(f"scenario: {error}") from None
    spec, source = _checked(source, [], ScenarioSpec, overrides)
    return LoadedScenario(spec=spec, path=path, source=source)


def changed(loaded: LoadedScenario, overrides: Overrides) -> LoadedScenario:
    """A loaded scenario with further overrides, without reading its file again.

    Raises ScenarioError with one line for each problem.
    """
    spec, source = _checked(loaded.source, [], ScenarioSpec, overrides)
    return LoadedScenario(spec=spec, path=loaded.path, source=source)


def load_spec(path: Path, spec_class: type[S], overrides: Overrides = ()) -> S:
    """The content of a YAML file as `spec_class`, changed by overrides (`a.b.c=value`).

    Raises ScenarioError with one line for each problem.
    """
    return _load(path, spec_class, overrides)[0]


def _load(path: Path, spec_class: type[S], overrides: Overrides) -> tuple[S, YamlSource]:
    source, problems = scan_yaml(path)
    return _checked(source, problems, spec_class, overrides)


def _checked(
    source: YamlSource, problems: list[Problem], spec_class: type[S], overrides: Overrides
) -> tuple[S, YamlSource]:
    path = source.path
    if overrides:
        source, wrong_options = apply_overrides(source, overrides)
        problems += wrong_options
    try:
        spec = spec_class.model_validate(source.data)
    except ValidationError as error:
        unreadable = {problem.keys for problem in problems}
        problems += problems_of(error, source, spec_class, unreadable)
        raise problems_error(path, problems) from None
    if problems:
        raise problems_error(path, problems)
    return spec, source
