"""Foreign files, read with limits: regular ones alone, and of a text no more than is asked for."""

from __future__ import annotations

import errno
import gzip
import json
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 1 << 20
MAX_INFLATED_BYTES = 1 << 32  # of the compressed members of an archive; a small one could otherwise fill the memory
MAX_DEFLATE_RATIO = 1100  # zlib packs zeros 1032 to 1, and nothing better


def regular(path: Path) -> Path:
    """`path`, of which is known that it ends: a regular file.

    Raises OSError where there is none: nothing, a folder, a pipe that nobody may write to, an endless device.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a pipe or device; write it to a file first", str(path))
    return path


def text_lines(path: Path, max_bytes: int) -> Iterator[str]:
    """Lines of a text in UTF-8, gzipped where its name ends in .gz, with their ends.

    Raises OSError where it cannot be read, holds (inflated) more than `max_bytes`, or a line more than 1 MiB, and
    UnicodeDecodeError where it is no UTF-8.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    left = max_bytes
    try:
        with opener(regular(path), "rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                left -= len(line)
                if len(line) > MAX_LINE_BYTES:
                    raise OSError(f"a line has more than {MAX_LINE_BYTES:,} bytes")
                if left < 0:
                    raise OSError(f"it holds more than {max_bytes:,} bytes; split it")
                yield line.decode()
    except (EOFError, zlib.error) as error:
        raise OSError(f"damaged gzip: {error}") from None


def check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise ValueError where compressed members say sizes that they cannot have, or that are too much together."""
    packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    for entry in packed:
        if entry.file_size > MAX_DEFLATE_RATIO * (entry.compress_size + 1):
            raise ValueError(f"{entry.filename} says that {entry.compress_size} bytes inflate to {entry.file_size}")
    if (size := sum(entry.file_size for entry in packed)) > MAX_INFLATED_BYTES:
        raise ValueError(f"it inflates to {size} bytes, more than {MAX_INFLATED_BYTES}; save it uncompressed")


def plain_json(data: bytes) -> Any:
    """Value of a JSON text whose own texts can be written again.

    Raises ValueError where it is no JSON or holds half of a surrogate pair, RecursionError where it is too deep.
    """
    value = json.loads(data)
    if b"\\ud" in data.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value
