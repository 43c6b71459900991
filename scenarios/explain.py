"""Validation errors in the words of the file: where it is, what is wrong, what was probably meant."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from scenarios.yaml_source import KeyPath, Problem, YamlSource, dotted, printable

_EXPECTED = {
    "a whole number": ("int_parsing", "int_type", "int_from_float", "int_parsing_size"),
    "a number": ("float_parsing", "float_type", "finite_number"),
    "true or false": ("bool_parsing", "bool_type"),
    "text": ("string_type",),
    "keys": ("model_type", "model_attributes_type", "dict_type"),
    "a list": ("tuple_type", "list_type"),
}
_NOUN_BY_TYPE = {kind: noun for noun, kinds in _EXPECTED.items() for kind in kinds}
_LIMIT_BY_TYPE = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name nearest to `word`, or nothing when none is near."""
    folded = {name.casefold().replace("_", "-"): name for name in known}
    near = difflib.get_close_matches(word[:200].casefold().replace("_", "-"), folded, n=1)
    return f" (did you mean '{folded[near[0]]}'?)" if near else ""


def problems_of(
    error: ValidationError, source: YamlSource, spec_class: type[BaseModel], unreadable: Collection[KeyPath] = ()
) -> list[Problem]:
    """One problem for each validation error, at the line of its key or of the nearest section that has one.

    Values at `unreadable` keys have been reported already; of those only unknown keys are.
    """
    details = error.errors(include_url=False)
    problems = [
        (detail["type"], _problem(detail, source, spec_class))
        for detail in details
        if not _repeats_base(detail, details, source.data)
    ]
    return [found for kind, found in problems if kind == "extra_forbidden" or found.keys not in unreadable]


def told(error: ValidationError, data: dict[str, Any], spec_class: type[BaseModel]) -> str:
    """All problems of data that stand in no file of their own, on one line."""
    source = YamlSource(path=Path(), data=data, places={(): 0})
    found = problems_of(error, source, spec_class)
    return printable("; ".join(f"{dotted(one.keys)}: {one.text}" if one.keys else one.text for one in found))


def _problem(detail: Mapping[str, Any], source: YamlSource, spec_class: type[BaseModel]) -> Problem:
    keys = _keys_in(source.data, detail["loc"], missing=detail["type"] == "missing")
    if detail["type"].startswith("union_tag"):
        keys = (*keys, detail["ctx"]["discriminator"].strip("'"))
    return Problem(place=source.place(keys), keys=keys, text=_text(detail, spec_class))


def _keys_in(data: Any, loc: Sequence[str | int], *, missing: bool) -> KeyPath:
    """The keys of `loc` that a user wrote, without the names of union members that the validator adds."""
    keys: list[str | int] = []
    for index, piece in enumerate(loc):
        if isinstance(data, dict) and piece in data:
            data = data[str(piece)]
        elif isinstance(data, list) and isinstance(piece, int) and piece < len(data):
            data = data[piece]
        elif not (missing and index == len(loc) - 1):
            continue
        keys.append(piece)
    return tuple(keys)


def _repeats_base(detail: Mapping[str, Any], details: Sequence[Mapping[str, Any]], data: dict[str, Any]) -> bool:
    """Whether an entry of `compare` only repeats an error of the section that completes it."""
    loc = detail["loc"]
    if len(loc) < 3 or loc[0] != "compare" or loc[1] == "placement":
        return False
    _, axis, index, *rest = loc
    entry = data["compare"][axis][index]
    base_errors = {(other["loc"], other["type"], other["msg"]) for other in details if other["loc"][:1] == (axis,)}
    if detail["type"] == "missing" and any(base_loc == (axis,) for base_loc, _, _ in base_errors):
        return True
    written = bool(rest) and isinstance(entry, dict) and rest[0] in entry
    return not written and ((axis, *rest), detail["type"], detail["msg"]) in base_errors


def _text(detail: Mapping[str, Any], spec_class: type[BaseModel]) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        return "missing key"
    if kind == "extra_forbidden":
        return _unknown_key(detail["loc"], spec_class)
    if kind == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    if kind in _NOUN_BY_TYPE:
        return _wrong_type(_NOUN_BY_TYPE[kind], value)
    if kind in _LIMIT_BY_TYPE:
        words, key = _LIMIT_BY_TYPE[kind]
        return f"must be {words} {context[key]:g}, got {_shown(value)}"
    if kind in {"literal_error", "union_tag_invalid"}:
        options = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
        return _wrong_choice(context.get("tag", value), options)
    if kind == "union_tag_not_found":
        return "missing key"
    if kind in {"too_short", "string_too_short"}:
        return f"needs at least {context['min_length']} {'characters' if kind.startswith('string') else 'entries'}"
    return f"{detail['msg']}, got {_shown(value)}"


def _wrong_type(noun: str, value: Any) -> str:
    if value is None:
        return f"expected {noun}, got nothing (write a value or remove the key)"
    remedy = " (quote it)" if noun == "text" and not isinstance(value, (dict, list)) else ""
    return f"expected {noun}, got {_shown(value)}{remedy}"


def _wrong_choice(value: Any, options: Sequence[str]) -> str:
    hint = did_you_mean(value, options) if isinstance(value, str) else ""
    return f"{_shown(value)} is not one of {', '.join(options)}{hint}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown_key(loc: Sequence[str | int], spec_class: type[BaseModel]) -> str:
    known = [name for model in _models_at(spec_class, loc[:-1]) for name in model.model_fields]
    return "unknown key" + (did_you_mean(str(loc[-1]), known) or f" (known: {', '.join(known)})")


def _models_at(spec_class: type[BaseModel], loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """The spec classes that may stand at `loc` of a spec."""
    reached: list[Any] = [spec_class]
    for piece in loc:
        reached = [child for annotation in reached for child in _children(annotation, piece)]
    return [annotation for annotation in reached if _is_model(annotation)]


def _children(annotation: Any, piece: str | int) -> list[Any]:
    if _is_model(annotation):
        field = annotation.model_fields.get(piece)
        if field is not None:
            return _members(field.annotation)
        return [annotation] if piece in _tags(annotation) else []
    arguments = get_args(annotation)
    if get_origin(annotation) in {list, tuple} and isinstance(piece, int):
        return _members(arguments[0])
    return _members(arguments[1]) if get_origin(annotation) is dict else []


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the annotation alone."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]


def _tags(model: type[BaseModel]) -> set[Any]:
    """Values that tell this member of a union from the others, as the validator names it."""
    literals = [field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal]
    return {value for literal in literals for value in get_args(literal)}


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
