"""What is done, one file a point, named by the content that it depends on: a rerun does only what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from scenarios.files import write_text
from scenarios.reading import regular
from scenarios.specs import ScenarioSpec
from traces.servegen import CLIENTS

Result = dict[str, Any]
PACKAGES = ("scenarios", "traces", "hwmodels", "placement", "sim")


def key_of(spec: ScenarioSpec, base: Path) -> str:
    """Digest of a point: its scenario, the files that it names, and the code and cards that simulate it."""
    content = spec.model_dump(mode="json", exclude={"name", "description", "compare", "budget"})
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for text in sorted(set(_texts(content))):
        path = base / text
        if len(text) >= 1024 or not path.exists():
            continue
        for file in [path] if path.is_file() else sorted(path.glob(CLIENTS)):
            digest.update(_digest_of_file(file, file.stat().st_mtime_ns, file.stat().st_size))
    digest.update(_digest_of_code())
    return digest.hexdigest()[:24]


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        if content and "\0" not in content:
            yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)


@lru_cache(maxsize=256)
def _digest_of_file(path: Path, _mtime_ns: int, _size: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@lru_cache(maxsize=1)
def _digest_of_code() -> bytes:
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.digest()


def load(folder: Path, key: str) -> Result | None:
    """The stored result of a key, or None where it is not done, or its file is not what was saved."""
    try:
        found = json.loads(regular(folder / f"{key}.json").read_text(encoding="utf-8"))
        whole = isinstance(found, dict) and found.pop("sum", None) == _sum(found)
    except (OSError, ValueError, RecursionError):
        return None
    return found if whole and found.get("key") == key else None


def save(folder: Path, result: Result) -> None:
    """Keep a result with its check sum, whole or not at all."""
    write_text(json.dumps(result | {"sum": _sum(result)}) + "\n", folder / f"{result['key']}.json")


def _sum(result: Result) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:24]
