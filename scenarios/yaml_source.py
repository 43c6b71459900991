"""YAML files as plain values that remember their lines; what YAML readers disagree about is an error."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scenarios.errors import ScenarioError

KeyPath = tuple[str | int, ...]

OPTION = "--set "
"""What stands before the path of an option where it is named as a place."""
MAX_BYTES = 8 * 2**20
MAX_DEPTH = 32
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels (write a flatter file)"

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing to mend: a line of the file or the name of another place, the keys concerned, what is wrong."""

    place: int | str
    keys: KeyPath
    text: str

    def line(self, path: Path) -> str:
        """`file:line keys: text`, or `--set option keys: text`, without line breaks or control characters."""
        where = f"{path}:{self.place}" if isinstance(self.place, int) else self.place
        keys = dotted(self.keys)
        named = f" {keys}" if keys and keys != where.removeprefix(OPTION) else ""
        return printable(f"{where}{named}: {self.text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlSource:
    """Plain content of a YAML file, and for every path of keys its line, or what else gave it: `--set a.b`."""

    path: Path
    data: dict[str, Any]
    places: Mapping[KeyPath, int | str]

    def place(self, keys: KeyPath) -> int | str:
        """Line of `keys`, or of the nearest section around them that has one."""
        return next(self.places[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.places)


def dotted(keys: KeyPath) -> str:
    """Keys as a user writes them: `compare.placement.0.solver`."""
    return ".".join(str(key)[:60] for key in keys)


def printable(text: str) -> str:
    """Text on one line, with control characters spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def problems_error(path: Path, problems: Iterable[Problem]) -> ScenarioError:
    """The error that states all problems of one file: a line each, by line number, options last."""
    ordered = sorted(problems, key=lambda problem: problem.place if isinstance(problem.place, int) else math.inf)
    lines = list(dict.fromkeys(problem.line(path) for problem in ordered))
    return ScenarioError("\n".join(lines if len(lines) == 1 else [f"{len(lines)} problems in {path}:", *lines]))


def read_yaml(path: Path) -> YamlSource:
    """Content of a YAML file whose top level is a mapping.

    Raises ScenarioError with every problem of the file: unreadable, not UTF-8, larger than 8 MiB, a syntax error,
    repeated keys, aliases, tags, and scalars that YAML 1.1 and 1.2 read differently (`on`, `1:30`, `010`).
    """
    source, problems = scan_yaml(path)
    if problems:
        raise problems_error(path, problems)
    return source


def scan_yaml(path: Path) -> tuple[YamlSource, list[Problem]]:
    """What `read_yaml` returns, with the problems that leave the rest readable; raises ScenarioError on others."""
    text = _read_text(path)
    parsed = parse_yaml(text)
    if parsed.broken:
        raise problems_error(path, parsed.problems)
    if parsed.value is None and not parsed.problems:
        raise ScenarioError(printable(f"{path}:1: the file is empty (write its keys)"))
    if not isinstance(parsed.value, dict):
        kind = "a list" if isinstance(parsed.value, list) else "a single value"
        top = Problem(place=parsed.lines.get((), 1), keys=(), text=f"expected keys at top level, got {kind}")
        raise problems_error(path, [*parsed.problems, top])
    return YamlSource(path=path, data=parsed.value, places=parsed.lines), parsed.problems


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ScenarioError(printable(f"{path}: no such file (check the path)")) from None
    except IsADirectoryError:
        raise ScenarioError(printable(f"{path}: is a folder (give a YAML file)")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ScenarioError(printable(f"{path}: cannot be read: {reason}")) from None
    if len(raw) > MAX_BYTES:
        raise ScenarioError(f"{path}: larger than {MAX_BYTES // 2**20} MiB, the limit for YAML (split the file)")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ScenarioError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8 (save the file as UTF-8)"
        ) from None


@dataclass(slots=True, kw_only=True)
class Parsed:
    """A parsed text: its value, the line of every path, its problems, and whether parsing broke off."""

    value: Any
    lines: dict[KeyPath, int | str]
    problems: list[Problem]
    broken: bool


def parse_yaml(text: str, root: KeyPath = ()) -> Parsed:
    """Plain value of one YAML document, whose paths begin with `root`."""
    builder = _Builder(text)
    try:
        return Parsed(value=builder.document(root), lines=builder.lines, problems=builder.problems, broken=False)
    except _BrokenOff as error:
        line, complaint = error.args
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        complaint = _syntax_text(error, text, line)
    except yaml.reader.ReaderError as error:
        line, complaint = text.count("\n", 0, error.position), "control character in the text (delete it)"
    except (yaml.YAMLError, ValueError) as error:
        line, complaint = 0, f"not valid YAML: {error}"
    problem = Problem(place=line + 1, keys=(), text=complaint)
    return Parsed(value=None, lines={}, problems=[*builder.problems, problem], broken=True)


def _syntax_text(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    if error.problem == "exceeded maximum nesting depth":  # libyaml of PyYAML 6.0.4 looks ahead, up to 1,000 levels
        return TOO_DEEP
    lines = text.split("\n")
    content = lines[line] if line < len(lines) else ""
    if "\t" in content[: len(content) - len(content.lstrip())]:
        return "tab in the indentation (indent with spaces)"
    context = f" {error.context}" if error.context else ""
    return f"not valid YAML: {error.problem}{context}"


class _BrokenOff(Exception):
    """Parsing cannot go on: the line, counted from 0, and why."""


class _Builder:
    """Plain values from the parser's events. Events, not `compose`: libyaml's composer overflows the C stack on
    deep nesting and is several times slower."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.lines: dict[KeyPath, int | str] = {}
        self.problems: list[Problem] = []

    def document(self, root: KeyPath) -> Any:
        value = None
        n_documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                n_documents += 1
                if n_documents > 1:
                    raise _BrokenOff(_line(event) - 1, "a second document begins (keep one per file)")
                value = self._value(next(self._events), root)
        return value

    def _value(self, event: Any, keys: KeyPath) -> Any:
        line = _line(event)
        self.lines.setdefault(keys, line)
        if len(keys) > MAX_DEPTH:
            raise _BrokenOff(line - 1, TOO_DEEP)
        if isinstance(event, yaml.AliasEvent):
            self._complain(line, keys, f"alias *{event.anchor} is not supported (write the value again)")
            return None
        if event.tag is not None:
            self._complain(line, keys, f"tag '{_short_tag(event.tag)}' is not supported (remove it; quote text)")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(keys)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(keys)
        return self._scalar(event, keys, line)

    def _mapping(self, keys: KeyPath) -> dict[str, Any]:
        content: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = _line(event)
            key = event.value if isinstance(event, yaml.ScalarEvent) else None
            if key is None:
                self._value(event, (*keys, "?"))
                self._complain(line, keys, "a key must be text")
                self._value(next(self._events), (*keys, "?"))
                continue
            below = (*keys, key)
            repeated = key in content
            if repeated:
                self._complain(line, below, f"repeated key, first on line {self.lines[below]} (keep one)")
            if key == "<<":
                self._complain(line, below, "merge keys are not supported (write the keys out)")
            self.lines.setdefault(below, line)
            value = self._value(next(self._events), below)
            if not repeated and key != "<<":
                content[key] = value
        return content

    def _sequence(self, keys: KeyPath) -> list[Any]:
        content: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            content.append(self._value(event, (*keys, len(content))))
        return content

    def _scalar(self, event: Any, keys: KeyPath, line: int) -> Any:
        if not event.implicit[0]:
            return event.value
        value, complaint = plain_scalar(event.value)
        if complaint:
            self._complain(line, keys, complaint)
        return value

    def _complain(self, line: int, keys: KeyPath, text: str) -> None:
        self.problems.append(Problem(place=line, keys=keys, text=text))


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def plain_scalar(text: str) -> tuple[Any, str | None]:
    """Value of an unquoted scalar by the core schema of YAML 1.2, and a complaint where YAML 1.1 reads another one."""
    if text in _NULLS:
        return None, None
    if text in _BOOLEANS:
        return _BOOLEANS[text], None
    if _INTEGER.fullmatch(text):
        return int(text), None
    if _FLOAT.fullmatch(text):
        exact = not text.lstrip("+-").isdigit() and math.isfinite(float(text))
        return (float(text), None) if exact else (text, f"{_cut(text)} is too large (write a smaller number)")
    return text, _old_reading(text)


def _old_reading(text: str) -> str | None:
    """What to do about a text that YAML 1.1 reads as a boolean or number, or nothing."""
    tag = next((tag for tag, pattern in _resolvers(text) if pattern.match(text)), "")
    kind = tag.rpartition(":")[2]
    if kind == "bool":
        return f"{text} is a boolean to some YAML readers and text to others (quote it or write true/false)"
    if kind == "float" and text.lower().lstrip("+-") in {".inf", ".nan"}:
        return f"{text} is not a finite number (write a finite one)"
    if kind in {"int", "float"} and ":" in text:
        return f"{_cut(text)} is a number in base 60 to some YAML readers (quote it or write a decimal number)"
    if kind in {"int", "float"} or _LEADING_ZERO.fullmatch(text):
        return f"{_cut(text)} is read differently by YAML readers (quote it or write a plain decimal number)"
    return None


def _resolvers(text: str) -> list[tuple[str, re.Pattern[str]]]:
    by_first_letter: Mapping[Any, list[tuple[str, re.Pattern[str]]]] = yaml.SafeLoader.yaml_implicit_resolvers
    return by_first_letter.get(text[:1], [])


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
