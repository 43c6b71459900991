"""Limits of what is read: regular files alone, and of texts and archives no more than fits."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest

from scenarios.reading import check_sizes, plain_json, regular, text_lines


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe would wait for ever for a writer, and /dev/zero would never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert regular(tmp_path / "link") == tmp_path / "link"
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="is a pipe or device; write it to a file first"):
            regular(path)
    for path in (tmp_path, tmp_path / "absent", tmp_path / "loop", tmp_path / "a\0b"):
        with pytest.raises(OSError, match=r"folder|No such file|symbolic links|null byte"):
            regular(path)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_lines_up_to_a_limit(tmp_path: Path, name: str) -> None:
    def lines(content: bytes, limit: int = 1 << 30) -> list[str]:
        (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
        return list(text_lines(tmp_path / name, limit))

    assert lines("ä\r\nb".encode(), 5) == ["ä\r\n", "b"]
    with pytest.raises(OSError, match="more than 4 bytes; split it"):
        lines(b"a\nb\nc", 4)
    with pytest.raises(OSError, match="a line has more than 1,048,576 bytes"):
        lines(b"1," * (1 << 20))
    with pytest.raises(UnicodeDecodeError):
        lines(b"\xff")


def test_damaged_gzip_is_told(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b"a,b\n" * 100))
    whole[12] ^= 0xFF
    for content in (bytes(whole), bytes(whole[:9]), b"a,b"):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(OSError, match=r"gzip|CRC"):
            list(text_lines(tmp_path / "a.gz", 1000))


def test_archives_do_not_promise_what_they_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 20))  # packed as well as deflate can
        check_sizes(archive)
        monkeypatch.setattr("scenarios.reading.MAX_INFLATED_BYTES", 1000)
        with pytest.raises(ValueError, match="inflates to 1048576 bytes, more than 1000; save it uncompressed"):
            check_sizes(archive)
        archive.getinfo("zeros").file_size = 1 << 36
        with pytest.raises(ValueError, match="zeros says that 1033 bytes inflate to 68719476736"):
            check_sizes(archive)


def test_texts_of_json_can_be_written_again() -> None:
    """Half of a surrogate pair would end every later print and file with an error."""
    assert plain_json(b'{"a": "\\ud83d\\ude00 \\\\ud800"}') == {"a": "\U0001f600 \\ud800"}
    with pytest.raises(ValueError, match="surrogates not allowed"):
        plain_json(b'["\\uD800"]')
