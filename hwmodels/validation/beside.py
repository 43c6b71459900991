"""Measurements that lie beside tables of kernels: where they are looked for, and the error where they are absent."""

from __future__ import annotations

from pathlib import Path

from scenarios.errors import HardwareError


class TablesMissing(HardwareError):
    """None of the files that a suite judges is there; other suites may go on."""


def beside(folder: Path, *places: str) -> Path | None:
    """The first of `places` that exists, each looked for below the folder and beside it."""
    candidates = (root / place for place in places for root in (folder, folder.parent))
    return next((path for path in candidates if path.exists()), None)


def missing(folder: Path, what: str) -> TablesMissing:
    """The error that names what the folder lacks."""
    return TablesMissing(f"{folder}: holds no {what}, nor does the folder around it; name another with --tables")
