"""Reading foreign files with limits on their size, never through pickle; what is malformed raises TraceError."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from scenarios.errors import TraceError
from scenarios.reading import plain_json, regular

MAX_JSON_BYTES = 1 << 30
MAX_LINE_BYTES = 64 << 20
MAX_CSV_FIELD_CHARS = 1 << 20
_KINDS = {int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "an object"}
Kind = TypeVar("Kind", int, float, str, list[Any], dict[str, Any])


def data_files(path: Path, pattern: str) -> list[Path]:
    """`path` itself, or the files of the folder that match `pattern`, in natural order (2 before 10)."""
    if path.is_file():
        return [path]
    found = sorted((file for file in path.rglob(pattern) if file.is_file()), key=natural_key)
    if not found:
        raise TraceError(f"no file {pattern} in this folder; give the folder that holds them")
    return found


def natural_key(path: Path) -> tuple[tuple[int, str], ...]:
    """Sort key that compares numbers in file names as numbers."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.as_posix()))


def need(record: Mapping[str, Any], key: str, kind: type[Kind], where: str) -> Kind:
    """`record[key]`, checked to be of `kind`; whole numbers pass as float, booleans pass as nothing."""
    value = record.get(key)
    accepted = (int, float) if kind is float else kind
    if isinstance(value, accepted) and not isinstance(value, bool):
        return value  # type: ignore[return-value]  # an int where a float is asked for
    state = "lacks" if key not in record else "misstates"
    raise TraceError(f"{where}: {state} '{key}', which must be {_KINDS[kind]}; export the file again")


def parse_json(data: bytes, where: str) -> Any:
    """Value of a JSON text."""
    try:
        return plain_json(data)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: not valid JSON ({error}); export the file again") from None


def read_json(path: Path) -> Any:
    """Value of a JSON file of at most 1 GiB."""
    size = regular(path).stat().st_size
    if size > MAX_JSON_BYTES:
        raise TraceError(f"{path.name} has {size} bytes, more than {MAX_JSON_BYTES}; split it, or export JSON lines")
    return parse_json(path.read_bytes(), path.name)


def json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) for each object of a .json file (a list, or one object), or of a JSON-lines file."""
    if path.suffix != ".json":
        values: Iterator[tuple[str, Any]] = _json_lines(path)
    else:
        content = read_json(path)
        entries = content if isinstance(content, list) else [content]
        values = ((f"{path.name} entry {i}", entry) for i, entry in enumerate(entries))
    for where, value in values:
        if not isinstance(value, dict):
            raise TraceError(f"{where}: expected a JSON object, got {type(value).__name__}; export the file again")
        yield where, value


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with regular(path).open("rb") as stream:
        for number in range(1, 1 << 62):
            line = stream.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            where = f"{path.name} line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise TraceError(f"{where}: longer than {MAX_LINE_BYTES} bytes; is this a JSON-lines file?")
            if line.strip():
                yield where, parse_json(line, where)


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """(place, fields) for each row of a CSV file whose header starts with `columns`; all rows have equal length."""
    csv.field_size_limit(MAX_CSV_FIELD_CHARS)
    with regular(path).open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if tuple(header[: len(columns)]) != columns:
                raise TraceError(
                    f"{path.name}: the header must start with {','.join(columns)}, got {','.join(header)[:80]}"
                )
            for row in reader:
                where = f"{path.name} line {reader.line_num}"
                if len(row) != len(header):
                    raise TraceError(f"{where}: {len(row)} fields, but the header has {len(header)}; is it truncated?")
                yield where, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise TraceError(f"{path.name}: not a readable CSV file ({error}); export it again") from None


def number(text: str, where: str) -> int:
    """Whole number written in `text`."""
    if re.fullmatch(r"[ \t\r\n]*-?[0-9]{1,18}[ \t\r\n]*", text) is None:  # \s has separators that int() refuses
        raise TraceError(f"{where}: '{text[:40]}' is not a whole number; export the file again")
    return int(text)


def read_npy(path: Path) -> NDArray[Any]:
    """Array of a .npy file; never through pickle."""
    with regular(path).open("rb") as stream:
        return npy_array(stream, path.stat().st_size, path.name)


def npy_bytes(data: bytes, where: str) -> NDArray[Any]:
    """Array of the bytes of a .npy file; never through pickle."""
    return npy_array(io.BytesIO(data), len(data), where)


def npy_array(stream: BinaryIO, n_bytes: int, where: str) -> NDArray[Any]:
    """Array of a stream of `n_bytes` in .npy format, whose header must agree with its length."""
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        promised = math.prod(shape) * dtype.itemsize
    except Exception as error:  # numpy's header parser passes on whatever Python's tokenizer raises
        raise TraceError(f"{where}: not a readable .npy array ({error}); export it again") from None
    if dtype.hasobject or dtype.kind not in "iufb":
        raise TraceError(f"{where}: holds {dtype}, not numbers; export a plain integer array (no pickled objects)")
    held = n_bytes - stream.tell()
    if min(shape, default=0) < 0 or promised != held:
        raise TraceError(f"{where}: the header promises {promised} bytes, but {held} follow; the file is truncated")
    return np.frombuffer(stream.read(), dtype=dtype).reshape(shape, order="F" if fortran else "C")


def whole_numbers(values: Any, where: str, *, ndim: int) -> NDArray[np.integer[Any]]:
    """`values` as an integer array with `ndim` axes; floats are accepted where they are whole."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise TraceError(f"{where}: not a regular array ({error}); export it again") from None
    if (
        array.dtype.kind == "f"
        and (array == np.floor(array)).all()
        and (np.abs(array).astype(np.float64) < 2**53).all()
    ):
        array = array.astype(np.int64)
    if array.ndim == ndim and array.size == 0:
        return array.astype(np.int64)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        raise TraceError(f"{where}: expected whole numbers with {ndim} axes, got {array.dtype} of shape {array.shape}")
    return array


def decode_base64(text: str, where: str) -> bytes:
    """Bytes of a base64 text."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise TraceError(f"{where}: not base64 ({error}); was the response cut off?") from None
