"""Mutations of arrays and of the files that hold them: .npy, .npz, other archives, safetensors, Parquet."""

from __future__ import annotations

import io
import warnings
import zipfile
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fuzz.canary import Canary
from tests.fuzz.texts import mutate_bytes, mutate_tree_text

DTYPES = ("u1", "i1", "u2", "i2", ">i4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "?", "U3", "S3", "M8[s]", "V4", "O")


def mutate_npy(data: bytes, rng: Random) -> bytes:
    """A .npy file of a mutated array."""
    return _npy(_mutated_array(np.load(io.BytesIO(data)), rng))


def mutate_npz(data: bytes, rng: Random) -> bytes:
    """An .npz archive with a mutated array, or with arrays gone, renamed or exchanged."""
    with np.load(io.BytesIO(data)) as archive:
        arrays: dict[str, Any] = dict(archive)
    name, other = rng.choice(list(arrays)), rng.choice(list(arrays))
    if name == "meta" and rng.random() < 0.8:
        text = mutate_tree_text(arrays[name].tobytes(), rng)
        arrays[name] = np.frombuffer(text, np.uint8)
    else:
        match rng.randrange(8):
            case 0:
                del arrays[name]
            case 1:
                arrays[name], arrays[other] = arrays[other], arrays[name]
            case 2:
                arrays[rng.choice(("", "x", f"../{name}", f"{name}/y", "é"))] = arrays.pop(name)
            case _:
                arrays[name] = _mutated_array(arrays[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, array in arrays.items():
            archive.writestr(f"{key}.npy", _npy(array))
    return stream.getvalue()


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _mutated_array(array: NDArray[Any], rng: Random) -> NDArray[Any]:
    """The array of another type or shape, with extreme values, or full of objects that do something when unpickled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match rng.randrange(7):
            case 0:
                return array.astype(rng.choice(DTYPES))
            case 1:
                return array.reshape(rng.choice((-1, (1, *array.shape), (*array.shape, 1), (array.size, 1))))
            case 2:
                return array.T[: rng.choice((0, 1, None))]
            case 3:
                return np.array([Canary()], dtype=object)
            case 4:
                return np.concatenate([array, array[: rng.choice((1, 100))]])
            case _:
                changed = array.astype(rng.choice((array.dtype, np.dtype("f8"), np.dtype("i8"))))
                numbers = [np.nan, np.inf, -1, 0, 2**15, 2**31, 2**62, -(2**62), 1e300, 0.5]
                np.put(
                    changed, rng.randrange(max(array.size, 1)), np.float64(rng.choice(numbers)).astype(changed.dtype)
                )
                return changed


def npy_header(data: bytes, rng: Random) -> bytes:
    """A .npy file whose header says something else than what follows."""
    descr = rng.choice(
        ("'<i4'", "'|O'", "'<U99999999'", "[('a', '<i4')]", "'|V0'", "None", "'<i4', 'x': 1", "__import__")
    )
    shape = rng.choice(
        ("()", "(0,)", "(-1,)", "(-1, -4)", "(10**9,)", "(99999999999, 99999999)", "(True,)", "(2.5,)", "5")
    )
    text = f"{{'descr': {descr}, 'fortran_order': {rng.choice(('False', 'True', '3'))}, 'shape': {shape}, }}\n".encode()
    version = rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + data[128:]


def mutate_zip(data: bytes, rng: Random) -> bytes:
    """An archive with one member mutated under a checksum that is right, renamed, repeated, or of a false size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    match rng.randrange(6):
        case 0:
            names = ("../../escaped.npy", "/tmp/escaped.npy", "a" * 60_000, f"{name}\0x", "")
            members[at] = (rng.choice(names), content)
        case 1:
            members.append((rng.choice(members)[0], content))
        case 2:
            del members[at]
        case _:
            codec = rng.choice((npy_header, mutate_bytes)) if name.endswith(".npy") else mutate_bytes
            members[at] = (name, codec(content, rng))
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of repeated names
        with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for member, text in members:
                archive.writestr(member, text)
    return stream.getvalue()


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """A safetensors file with a mutated header, of right or wrong length."""
    length = int.from_bytes(data[:8], "little")
    header = mutate_tree_text(data[8 : 8 + length], rng)
    stated = rng.choice((len(header), len(header), len(header), length, 2**63, len(header) - 1))
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def mutate_parquet(data: bytes, rng: Random) -> bytes:
    """A Parquet file with a column of other values, another name or none, or with other rows."""
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(data))
    at = rng.randrange(table.num_columns)
    name = table.column_names[at]
    filler: tuple[Any, ...] = (None, "x", 1.5, -1, float("nan"), [1], {"a": 1}, b"\xff", 2**62, True)
    match rng.randrange(5):
        case 0:
            table = table.remove_column(at)
        case 1:
            table = table.rename_columns(
                [rng.choice(("", "x", "é")) if key == name else key for key in table.column_names]
            )
        case 2:
            table = table.slice(0, rng.choice((0, 1, table.num_rows - 1)))
        case 3:
            values = table.column(at).to_pylist()
            values[rng.randrange(len(values))] = None
            table = table.set_column(at, name, pyarrow.array(values))
        case _:
            table = table.set_column(at, name, pyarrow.array([rng.choice(filler)] * table.num_rows))
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()
