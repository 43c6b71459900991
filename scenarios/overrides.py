"""`--set a.b.c=value`: changes to a YAML file's content before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from scenarios.yaml_source import KeyPath, Problem, YamlSource, dotted, parse_yaml


def apply_overrides(source: YamlSource, overrides: Sequence[str]) -> tuple[YamlSource, list[Problem]]:
    """The source with each `a.b.c=value` set, values read as YAML, and the problems of the options themselves.

    A number in a path counts list entries from 0; sections that are absent come into being.
    """
    data, places = copy.deepcopy(source.data), dict(source.places)
    problems: list[Problem] = []
    for override in overrides:
        option, equals, text = override.partition("=")
        if not equals or not all(option.split(".")):
            remedy = "expected PATH=VALUE with a path such as cluster.nodes"
            problems.append(Problem(place=option, keys=(), text=remedy))
            continue
        try:
            keys, created = _reach(data, option.split("."))
        except ValueError as error:
            problems.append(Problem(place=option, keys=(), text=str(error)))
            continue
        parsed = parse_yaml(text, root=keys)
        problems += [replace(problem, place=option, keys=problem.keys or keys) for problem in parsed.problems]
        _parent(data, keys)[keys[-1]] = parsed.value
        places = {known: place for known, place in places.items() if known[: len(keys)] != keys}
        places |= dict.fromkeys([*created, keys], option)
    return YamlSource(path=source.path, data=data, places=places), problems


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
