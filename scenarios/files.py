"""Files that appear whole or not at all."""

from __future__ import annotations

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
