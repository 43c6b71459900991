"""Parts of the reference that are made of the program: commands, keys of scenarios, hardware cards; all in Markdown.

A page has `<!-- generated: commands -->` where they go; docs/conf.py fills them in when the site is built.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from hwmodels.library import list_cards
from moesim.capture_commands import PROGRAM
from moesim.cli import app
from scenarios.sources import Sourced, Spec
from scenarios.specs import CompareSpec, ScenarioSpec
from traces.capture.commands import parser_of

FIELD = re.compile(r"(\w[\w, ]*?) {2,}(\S.*)")
MARKER = re.compile(r"<!-- generated: (\w+) -->")
OPTION_HEADER = ("argument, option", "meaning", "default")
SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
UNITS = {
    "_flop_per_s": "FLOP/s",
    "_bytes_per_s": "B/s",
    "bytes_per_s": "B/s",
    "_bytes": "B",
    "_j_per_byte": "J/B",
    "_j": "J",
    "_w": "W",
    "_hz": "Hz",
    "_usd": "USD",
    "_s": "s",
}
PREFIXES = {1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ", 1e-9: "n", 1e-12: "p"}


def filled(page: str) -> str:
    """The page with what its markers stand for."""
    return MARKER.sub(lambda marker: "\n".join(PARTS[marker[1]]()), page)


def in_rest(_app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Turn docstrings into reStructuredText: back quotes, and columns of names and what they are into lists."""
    quoted = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line).replace("*", r"\*") for line in lines]
    named = [FIELD.match(line) for line in quoted]
    inside = False
    for number, (line, field) in enumerate(zip(quoted, named, strict=True)):
        inside = field is not None or (inside and line.startswith(" "))
        lines[number] = f"- ``{field[1]}``: {field[2]}" if field else f"  {line.strip()}" if inside else line


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    program = typer.main.get_command(app)
    for name, command in program.commands.items():  # type: ignore[attr-defined]
        if name == "capture":
            yield from _capture()
        elif hasattr(command, "commands"):
            yield f"\n## moesim {name}\n\n{command.help}\n"
            for inner, entry in command.commands.items():
                yield from _command(f"moesim {name} {inner}", entry, "###")
        else:
            yield from _command(f"moesim {name}", command, "##")


def _command(name: str, command: Any, level: str) -> Iterator[str]:
    yield f"\n{level} {name}\n\n{command.help}\n"
    yield from table(OPTION_HEADER, (_parameter(one) for one in command.params))


def _parameter(parameter: Any) -> tuple[str, str, str]:
    is_option = parameter.param_type_name == "option"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    value = parameter.metavar or ("" if getattr(parameter, "is_flag", False) else "VALUE")
    shown = f"{names} {value}" if is_option else f"`{value}`"
    default = parameter.default
    return shown, parameter.help or "", "" if default in (None, False, ()) else f"`{default}`"


def _capture() -> Iterator[str]:
    """The commands of capture, which argparse knows."""
    parser = parser_of(PROGRAM)
    yield f"\n## {PROGRAM}\n\n{parser.description}\n"
    for group in parser._actions:
        if isinstance(group, argparse._SubParsersAction):
            for name, inner in group.choices.items():
                yield f"\n### {PROGRAM} {name}\n\n{inner.description}\n"
                options = [_action(one) for one in inner._actions if one.dest != "help"]
                yield from table(OPTION_HEADER, options)


def _action(action: argparse.Action) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.dest.upper()}`"
    value = action.metavar or (" \\| ".join(map(str, action.choices)) if action.choices else "")
    default = action.default
    shown = "" if default in (None, False, argparse.SUPPRESS) else f"`{default}`"
    return f"{names} {value if isinstance(value, str) else ' '.join(value)}", action.help or "", shown


def keys() -> Iterator[str]:
    """Every key of a scenario, a table for each section."""
    yield from _section("", ScenarioSpec, ())


def _section(path: str, spec: type[BaseModel], above: tuple[type[BaseModel], ...]) -> Iterator[str]:
    """The keys of a section, then the sections inside it; a section inside itself is not gone into again."""
    if path:
        yield f"\n## {path}\n"
        yield f"{_first_paragraph(spec)}\n"
    yield from table(
        ("key", "type", "unit", "default", "meaning"), (_key(path, *item) for item in spec.model_fields.items())
    )
    for name, field in spec.model_fields.items():
        for inner in _specs(field.annotation):
            if inner not in (*above, spec) and spec is not CompareSpec:
                yield from _section(f"{path}.{name}" if path else name, inner, (*above, spec))


def _key(path: str, name: str, field: FieldInfo) -> tuple[str, ...]:
    kind, unit = _type(field.annotation, field.metadata)
    limits = ", ".join(f"{SIGNS[type(m)]} {_limit(m)}" for m in field.metadata if type(m) in SIGNS)
    default = "required" if field.is_required() else _default(field.default)
    return (
        f"`{path}.{name}`" if path else f"`{name}`",
        f"{kind}, {limits}" if limits else kind,
        unit,
        default,
        field.description or " ".join(map(_first_paragraph, _specs(field.annotation))),
    )


def _limit(bound: Any) -> Any:
    return getattr(bound, type(bound).__name__.lower())


def _default(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[str, str]:
    """What may be written, and its unit: ("quantity", "time, as `3 us`")."""
    for entry in metadata:
        if isinstance(entry, WithJsonSchema):
            schema = entry.json_schema or {}
            return "quantity", f"{schema['description'].removesuffix(' with unit')}, as `{schema['examples'][0]}`"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments), ""
    if origin in (tuple, list):
        kind, unit = _type(arguments[0])
        return f"list of {kind}", unit
    if origin is dict:
        return "section", ""
    if origin in (Union, UnionType):
        kinds = [_type(one) for one in arguments if one is not type(None)]
        return " or ".join(kind for kind, _ in kinds), next((unit for _, unit in kinds if unit), "")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section", ""
    return {"str": "text", "bool": "`true`, `false`", "float": "number", "int": "whole number"}[annotation.__name__], ""


def _specs(annotation: Any) -> Iterator[type[Spec]]:
    """The sections that a key holds."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for one in get_args(annotation):
        yield from _specs(one)


def _first_paragraph(spec: type[BaseModel]) -> str:
    return " ".join((spec.__doc__ or "").split("\n\n")[0].split())


def hardware() -> Iterator[str]:
    """Every number of the shipped cards of devices, nodes, links and hosts, with its kind and source."""
    shipped = list_cards()
    for kind in ("devices", "nodes", "links", "hosts"):
        yield f"\n## {kind.capitalize()}\n"
        for card in getattr(shipped, kind):
            yield f"\n### {card.name}\n"
            plain = [
                f"{name.replace('_', ' ')} `{value}`"
                for name, value in card
                if isinstance(value, str) and name not in ("name", "note")
            ]
            yield f"{', '.join(plain)}.{' ' + card.note if card.note else ''}\n"
            yield from table(("number", "value", "kind", "source"), _numbers(card))


def _numbers(card: BaseModel, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Rows for the numbers of a card, and of the parts that it has."""
    for name, value in card:
        if isinstance(value, Sourced):
            yield f"`{prefix}{name}`", amount(name, value.value), value.kind, value.source
        elif isinstance(value, dict):
            for inner, entry in value.items():
                yield f"`{prefix}{name}` {inner}", amount(name, entry.value), entry.kind, entry.source
        elif isinstance(value, BaseModel) and name != "band":
            yield from _numbers(value, f"{name}.")


def amount(name: str, value: float) -> str:
    """A number with the unit that its name ends in, such as `4.8 TB/s`; counts and shares as they are."""
    unit = next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
    if not unit or not value:
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    factor = next((factor for factor in PREFIXES if value >= factor * (1 - 1e-9)), 1e-12)
    return f"{value / factor:,.4g} {PREFIXES[factor]}{unit}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield _row(header)
    yield _row(["---"] * len(header))
    for row in rows:
        yield _row([" ".join(cell.split()).replace("|", "\\|").replace("\\\\|", "\\|") for cell in row])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


PARTS = {"commands": commands, "keys": keys, "hardware": hardware}
