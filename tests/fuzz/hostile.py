"""What may stand in place of any file: bombs, pickles that act, pipes, folders, links in a circle, endless devices."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.fuzz.canary import Canary

_HEADER = "{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}"


def _npy_zeros(claimed: int, held: int) -> bytes:
    text = _HEADER.format(claimed).ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(held)


@cache
def zip_bomb() -> bytes:
    """64 MiB of zeros deflated under ten names."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("ids", "offsets", "meta", "positions", "data/pkl", "a", "b", "c", "d", "e"):
            archive.writestr(f"{name}.npy", _npy_zeros(1 << 26, 1 << 26))
    return stream.getvalue()


@cache
def zip_that_lies() -> bytes:
    """An archive of 100 bytes that claims 64 GiB, in its directory and in the array's header."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", _npy_zeros(1 << 36, 100))
        info = archive.getinfo("ids.npy")
        info.file_size = (1 << 36) + 128
    return stream.getvalue()


@cache
def gzip_bomb(head: bytes = b"", unit: bytes = b"1,") -> bytes:
    """512 MiB in one line, gzipped to half a megabyte."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6) as packed:
        packed.write(head)
        for _ in range(512):
            packed.write(unit * ((1 << 20) // len(unit)))
    return stream.getvalue()


def _alias_bomb() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines).encode()


CONTENTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "zeros": lambda: bytes(4096),
    "all bytes": lambda: bytes(range(256)) * 4,
    "not UTF-8": lambda: b'{"name": "\xff\xfe\xed\xa0\x80"}',
    "UTF-16": lambda: "name: x\nmodel: y\n".encode("utf-16"),
    "deep JSON": lambda: b'{"a":[' * 60_000,
    "deep closed JSON": lambda: b"[" * 60_000 + b"]" * 60_000,
    "deep YAML": lambda: b"".join(b" " * n + b"a:\n" for n in range(2000)),
    "alias bomb": _alias_bomb,
    "YAML object": lambda: b"!!python/object/apply:os.mkdir [executed]",
    "YAML name": lambda: b"a: !!python/name:os.system\nb: !!python/module:os\nc: !!binary aGk=\nd: !!set {x}",
    "long number": lambda: b"[" + b"9" * 200_000 + b"]",
    "long text": lambda: b'{"name": "' + b"a" * 2_000_000 + b'"}',
    "many keys": lambda: b"{" + b",".join(b'"k%d":%d' % (n, n) for n in range(20_000)) + b"}",
    "pickle": lambda: pickle.dumps(Canary()),
    "pickle in zip": lambda: _zipped(
        {"archive/data.pkl": pickle.dumps({"records": Canary()}), "archive/version": b"3"}
    ),
    "pickle in npz": lambda: _zipped(
        {f"{n}.npy": _pickled_array() for n in ("ids", "meta", "offsets", "routed_experts")}
    ),
    "zip bomb": zip_bomb,
    "zip that lies": zip_that_lies,
    "gzip bomb": gzip_bomb,
    "gzip bomb of JSON": lambda: gzip_bomb(b'{"timestamp": ', b"1"),
    "gzip bomb of rows": lambda: gzip_bomb(b"arrival_s,input_tokens,output_tokens\n", b"1,1,1\n"),
    "truncated gzip": lambda: gzip.compress(b"a,b\n1,2\n" * 100)[:-12],
    "zip of nothing": lambda: _zipped({}),
    "huge header": lambda: (1 << 62).to_bytes(8, "little") + b"{}",
    "Parquet marks": lambda: b"PAR1" + bytes(16) + b"\xff\xff\xff\x7fPAR1",
}


def _zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _pickled_array() -> bytes:
    text = _HEADER.format(1).replace("|u1", "|O").ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + pickle.dumps([Canary()])


def _folder(path: Path) -> None:
    path.mkdir()
    (path / path.name).write_bytes(b"x")


def _unreadable(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


PLACES: dict[str, Callable[[Path], None]] = {
    "absent": lambda _: None,
    "folder": _folder,
    "pipe": os.mkfifo,
    "link in a circle": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "unreadable": _unreadable,
}


def names() -> list[str]:
    """All that may stand in place of a file."""
    return [*CONTENTS, *PLACES]


def put(name: str, path: Path) -> None:
    """Put a hostile thing where `path` is."""
    path.unlink()
    if name in PLACES:
        PLACES[name](path)
    else:
        path.write_bytes(CONTENTS[name]())
