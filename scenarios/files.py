"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scenarios.errors import MoesimError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; moved to `path` when the block ends well, deleted when it does not.

    Raises MoesimError where the folder cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False) as new:
            temporary = Path(new.name)
    except OSError as error:
        raise MoesimError(f"{path}: cannot be written ({error.strerror}); choose another path") from None
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except IsADirectoryError:
        raise MoesimError(f"{path}: is a folder; give a file name") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_or_print(text: str, target: str) -> None:
    """Write a text file, or print where `target` is `-`."""
    if target == "-":
        print(text, end="", flush=True)  # a closed pipe shows here, not when Python ends
    else:
        write_text(text, Path(target))


def check_file(path: Path) -> None:
    """Raise MoesimError where the file `path` could not be written; called before long work, not after it."""
    if path.is_dir():
        raise MoesimError(f"{path}: is a folder; give a file name")
    if not path.parent.is_dir():
        raise MoesimError(f"{path}: cannot be written (there is no folder {path.parent}); choose another path")
    _check_rights(path, path.parent)


def check_folder(path: Path) -> None:
    """Raise MoesimError where the folder `path` could not be made or written to."""
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        raise MoesimError(f"{path}: {nearest} is a file in the way; give the path of a folder")
    _check_rights(path, nearest)


def _check_rights(path: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MoesimError(f"{path}: cannot be written (no right to write in {folder}); choose another path")
