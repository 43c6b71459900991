"""Changes to a scenario's content before it is checked: `--set a.b.c=value`, or values of Python by path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike, fspath
from typing import Any

import yaml

from scenarios.yaml_source import OPTION, KeyPath, Problem, YamlSource, dotted, parse_yaml

Overrides = Sequence[str] | Mapping[str, Any]
"""`a.b.c=value` with values as YAML, or path -> value of Python."""


def apply_overrides(source: YamlSource, overrides: Overrides) -> tuple[YamlSource, list[Problem]]:
    """The source with the value of every override set, and the problems of the overrides themselves.

    A number in a path counts list entries from 0; sections that are absent come into being.
    """
    data, places = copy.deepcopy(source.data), dict(source.places)
    problems: list[Problem] = []
    for place, path, read in _changes(overrides):
        try:
            if not all(path.split(".")):
                raise ValueError("expected PATH=VALUE with a path such as cluster.nodes")
            value, found = read()
            keys, created = change(data, path, value)
        except ValueError as error:
            problems.append(Problem(place=place, keys=(), text=str(error)))
            continue
        problems += [replace(problem, place=place, keys=(*keys, *problem.keys)) for problem in found]
        places = {known: known_place for known, known_place in places.items() if known[: len(keys)] != keys}
        places |= dict.fromkeys([*created, keys], place)
    return YamlSource(path=source.path, data=data, places=places), problems


def _changes(overrides: Overrides) -> Iterator[tuple[str, str, Callable[[], tuple[Any, list[Problem]]]]]:
    """Of every override the place that messages name, its path, and what reads its value, problems beside it."""
    if isinstance(overrides, Mapping):
        for path, value in overrides.items():
            yield str(path), str(path), partial(_taken, value)
        return
    for option in overrides:
        path, equals, text = option.partition("=")
        yield f"{OPTION}{path}", path if equals else "", partial(_parsed, text)


def _taken(value: Any) -> tuple[Any, list[Problem]]:
    return plain(value), []


def _parsed(text: str) -> tuple[Any, list[Problem]]:
    parsed = parse_yaml(text)
    return parsed.value, parsed.problems


def plain(value: Any) -> Any:
    """A value of Python as YAML would give it: dicts, lists, text, numbers, booleans and None.

    Tuples become lists, paths text, NumPy's scalars numbers. Raises ValueError for anything else.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(entry) for entry in value]
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    raise ValueError(f"{type(value).__name__} has no place in a scenario; give dicts, lists, text or numbers")


def flow_text(value: Any) -> str:
    """A value of Python on one line of YAML, as `--set` takes it: `{solver: eplb, redundant: 8}`.

    Raises ValueError where `plain` does.
    """
    text = yaml.safe_dump(plain(value), default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("...\n").strip()


def change(data: dict[str, Any], path: str, value: Any) -> tuple[KeyPath, list[KeyPath]]:
    """The keys that `path` (`a.b.c`) means in `data`, set to `value` there, and the sections that had to be made.

    Raises ValueError where the path leads nowhere.
    """
    keys, created = _reach(data, path.split("."))
    _parent(data, keys)[keys[-1]] = copy.deepcopy(value)
    return keys, created


def _reach(data: dict[str, Any], pieces: Sequence[str]) -> tuple[KeyPath, list[KeyPath]]:
    """The keys that `pieces` mean, and the sections that had to be made; raises ValueError where they lead nowhere."""
    here: Any = data
    keys: KeyPath = ()
    created: list[KeyPath] = []
    for index, piece in enumerate(pieces):
        keys = (*keys, _key(here, piece, keys))
        if index == len(pieces) - 1:
            break
        if isinstance(here, dict) and here.get(piece) is None:
            here[piece] = {}
            created.append(keys)
        here = here[keys[-1]]
    return keys, created


def _key(here: Any, piece: str, keys: KeyPath) -> str | int:
    if isinstance(here, dict):
        return piece
    if not isinstance(here, list):
        raise ValueError(f"{dotted(keys)} is a single value without keys (set {dotted(keys)} itself)")
    if not piece.isdecimal() or len(piece) > 9 or int(piece) >= len(here):
        raise ValueError(f"{dotted(keys)} is a list of {len(here)} entries, counted from 0; '{piece}' is none of them")
    return int(piece)


def _parent(data: dict[str, Any], keys: KeyPath) -> Any:
    here: Any = data
    for key in keys[:-1]:
        here = here[key]
    return here
