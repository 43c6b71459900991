"""What runs: the version of moesim, its commit in a checkout, and the versions of what computes with it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import moesim

COMPUTING = ("numpy", "scipy", "simpy")


def version_text(root: Path) -> str:
    """`moesim VERSION (commit)`, and a line of versions; no commit where `root` is no checkout, as in a wheel."""
    commit = commit_of(root)
    own = f"moesim {moesim.__version__}" + (f" (commit {commit})" if commit else "")
    others = ", ".join(f"{name} {version(name)}" for name in COMPUTING)
    return f"{own}\nPython {platform.python_version()}, {others}"


def commit_of(root: Path) -> str | None:
    """Short name of the commit checked out, with `-dirty` where files differ; None without git or a checkout."""
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
