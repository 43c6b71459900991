"""A Hugging Face config.json with its types checked on reading; every problem names file and key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scenarios.errors import ScenarioError

MAX_BYTES = 4 * 2**20
MAX_INTEGER = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Keys of a config.json, or of one section of it (`prefix` names the section). Null counts as absent."""

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""

    def problem(self, key: str, text: str) -> ScenarioError:
        """Error that names the file and the key."""
        return ScenarioError(f"{self.path} {self.prefix}{key}: {text}")

    def has(self, key: str) -> bool:
        """Whether the key is present and not null."""
        return self.values.get(key) is not None

    def first(self, *keys: str) -> str:
        """The first of `keys` that is present, or the first one where none is."""
        return next((key for key in keys if self.has(key)), keys[0])

    def integer(self, key: str, *, minimum: int = 1, maximum: int = MAX_INTEGER) -> int:
        """Whole number from `minimum` to `maximum`. Raises ScenarioError where it is absent or something else."""
        if not self.has(key):
            raise self._missing(key)
        return self._whole_number(key, self.values[key], minimum, maximum)

    def integer_or(self, key: str, default: int, *, minimum: int = 0) -> int:
        """Whole number of at least `minimum`, or `default` where the key is absent."""
        return self.integer(key, minimum=minimum) if self.has(key) else default

    def integers(self, key: str) -> tuple[int, ...]:
        """Whole numbers of a list; empty where the key is absent."""
        return tuple(self._whole_number(key, item, 0, MAX_INTEGER) for item in self._list(key))

    def words(self, key: str) -> tuple[str, ...]:
        """Texts of a list; empty where the key is absent."""
        items = self._list(key)
        if not all(isinstance(item, str) for item in items):
            raise self.problem(key, "must be a list of texts")
        return tuple(items)

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false, or `default` where the key is absent."""
        value = self.values[key] if self.has(key) else default
        if not isinstance(value, bool):
            raise self.problem(key, f"must be true or false, not {_shown(value)}")
        return value

    def word(self, key: str, default: str) -> str:
        """Text, or `default` where the key is absent."""
        value = self.values[key] if self.has(key) else default
        if not isinstance(value, str):
            raise self.problem(key, f"must be a text, not {_shown(value)}")
        return value

    def section(self, key: str) -> Config:
        """The object under `key`."""
        if not self.has(key):
            raise self._missing(key)
        value = self.values[key]
        if not isinstance(value, dict):
            raise self.problem(key, f"must be an object, not {_shown(value)}")
        return replace(self, values=value, prefix=f"{self.prefix}{key}.")

    def _list(self, key: str) -> list[Any]:
        value = self.values[key] if self.has(key) else []
        if not isinstance(value, list):
            raise self.problem(key, f"must be a list, not {_shown(value)}")
        return value

    def _whole_number(self, key: str, value: object, minimum: int, maximum: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.problem(key, f"must be a whole number, not {_shown(value)}")
        if not minimum <= value <= maximum:
            raise self.problem(key, f"{_shown(value)} must be from {minimum} to {maximum}")
        return value

    def _missing(self, key: str) -> ScenarioError:
        others = [other for other in self.values if other != key]
        near = difflib.get_close_matches(key, others, n=1, cutoff=0.8)
        hint = f" (did the file mean '{near[0]}'?)" if near else ""
        state = "null" if key in self.values else "missing"
        return self.problem(key, f"is {state}, and this model type needs it{hint}")


def load_config(path: Path) -> Config:
    """The config.json at `path`; of a multimodal model the language part, with the outer keys it does not override.

    Raises ScenarioError where the file is absent, larger than 4 MiB, not JSON in UTF-8 or not an object.
    """
    values = _load_object(path)
    outer = Config(path=path, values=values)
    if not outer.has("text_config"):
        return outer
    return replace(outer, values={**values, **outer.section("text_config").values})


def load_beside(path: Path, name: str) -> Config | None:
    """The JSON file `name` in the folder of `path`, or none where it does not exist."""
    beside = path.with_name(name)
    return Config(path=beside, values=_load_object(beside)) if beside.exists() else None


def _load_object(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ScenarioError(f"{path}: is not a file; give the path of a model's config.json")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ScenarioError(f"{path}: has {size} bytes, a config.json at most {MAX_BYTES}; is it another file?")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"{path}: is not text in UTF-8; is it a config.json?") from None
    except json.JSONDecodeError as error:
        raise ScenarioError(f"{path}:{error.lineno}: is not JSON ({error.msg})") from None
    except (RecursionError, ValueError):
        raise ScenarioError(f"{path}: is not a config.json (nested too deeply, or a number too long)") from None
    if not isinstance(values, dict):
        raise ScenarioError(f"{path}: holds a {type(values).__name__}; a config.json holds an object")
    return values


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
