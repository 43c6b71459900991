"""Mutations of valid files: their bytes, trees (YAML, JSON), lines and cells, arrays, archives, by their names."""

from __future__ import annotations

import copy
import gzip
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from random import Random
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tests.fuzz.canary import Canary

Mutation = Callable[[bytes, Random], bytes]

EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 32767, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, -1e308, 5e-324,
    float("inf"), float("nan"), "", " ", "x", "nan", "1e400", "0x10", "1:30", "on", "900 GB/s", "-3 us", "1e-40 s",
    "9" * 400, "1" * 5000, "\0", "\ud800", "é\u202e", "../../../../etc/passwd", "/dev/zero", "/proc/self/mem", "~/x",
    "a" * 70_000, "a.b.c", "{{7*7}}", "<script>", "__import__('os').mkdir('executed')", [], {}, [[]], [None], [0] * 300,
    {"": None}, {"x": {"x": {"x": 1}}}, "[1, 2]", "%s%s%n", "-", "=",
)  # fmt: skip
TOKENS = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\n\n",
    b"\t",
    b'"',
    b"'",
    b",",
    b":",
    b"- ",
    b"[",
    b"]",
    b"{",
    b"}",
    b"#",
    b"&a ",
    b"*a",
    b"!!python/name:os.system ",
    b"<<: ",
    b"---\n",
    b"%YAML 9\n",
    b"? ",
    b"|",
    b">",
    b"@",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"(" * 300,
    b"-" * 300,
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"null",
    b"PK\x05\x06",
    b"PK\x01\x02",
    b"\x93NUMPY",
    b"cos\nmkdir\n(S'executed'\ntR.",
    b"\x80\x04",
    b"\xff" * 8,
    b"\x00" * 64,
    b"\x7f\xff\xff\xff",
)
DTYPES = ("u1", "i1", "u2", "i2", ">i4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "?", "U3", "S3", "M8[s]", "V4", "O")


def mutated(data: bytes, name: str, rng: Random) -> bytes:
    """`data`, the content of a file of this name, with one to three mutations."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kinds = (*_codecs(name), mutate_bytes)
        chosen = kinds[0] if rng.random() < 0.6 else rng.choice(kinds)
        try:
            data = chosen(data, rng)
        except Exception:  # an earlier mutation left nothing that this one can take apart
            data = mutate_bytes(data, rng)
    return data


def _codecs(name: str) -> tuple[Mutation, ...]:
    """Mutations that know what is inside a file of this name, the one that goes deepest first."""
    suffix = PurePath(name).suffix
    by_suffix: dict[str, tuple[Mutation, ...]] = {
        ".yaml": (mutate_tree_text, mutate_lines),
        ".yml": (mutate_tree_text, mutate_lines),
        ".json": (mutate_tree_text,),
        ".jsonl": (mutate_json_lines, mutate_lines),
        ".csv": (mutate_lines,),
        ".txt": (mutate_lines,),
        ".npy": (mutate_npy, _npy_header),
        ".npz": (mutate_npz, mutate_zip),
        ".pt": (mutate_zip,),
        ".safetensors": (mutate_safetensors,),
        ".parquet": (mutate_parquet,),
    }
    if suffix == ".gz":
        return (_inside_gzip(PurePath(name).stem),)
    return by_suffix.get(suffix, ())


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Bits flipped, stretches cut, repeated, moved or truncated, tokens put in, numbers overwritten."""
    content = bytearray(data)
    first, second = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    near = min(second, first + rng.randrange(1, 40))
    match rng.randrange(8):
        case 0 if content:
            for _ in range(rng.randrange(1, 5)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case 1:
            del content[first:near]
        case 2:
            content[first:first] = content[first:near] * rng.choice((1, 2, 50))
        case 3:
            content[second:second] = content[first:near]
        case 4:
            del content[rng.choice((first, len(content) - rng.randrange(min(len(content), 30) + 1))) :]
        case 5:
            n_bytes = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, 2 ** (8 * n_bytes) - 1, 2 ** (8 * n_bytes - 1), rng.getrandbits(8 * n_bytes)))
            content[first : first + n_bytes] = number.to_bytes(n_bytes, rng.choice(("little", "big")))
        case 6:
            content[first:near] = rng.choice(TOKENS)
        case _:
            content[first:first] = rng.choice(TOKENS)
    return bytes(content)


def mutate_tree_text(data: bytes, rng: Random) -> bytes:
    """A YAML or JSON text with a mutated tree, written as JSON, which is YAML, too."""
    text = data.decode()
    tree = json.loads(text) if text.lstrip()[:1] in "[{" else yaml.load(text, yaml.CSafeLoader)
    return json.dumps(mutate_tree(tree, rng)).encode()


def mutate_json_lines(data: bytes, rng: Random) -> bytes:
    """JSON lines with one mutated object."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = mutate_tree_text(lines[at], rng)
    return b"\n".join(lines)


def mutate_tree(tree: Any, rng: Random) -> Any:
    """The tree with one node replaced, deleted, renamed, repeated, scaled, wrapped, or swapped with another."""
    box = {"": copy.deepcopy(tree)}
    nodes = list(_nodes(box))
    holder, key = rng.choice(nodes)
    value = holder[key]
    match rng.randrange(8):
        case 0 | 1:
            holder[key] = rng.choice(EXTREMES)
        case 2:
            other, place = rng.choice(nodes)
            holder[key] = copy.deepcopy(other[place])
        case 3:
            del holder[key]
        case 4 if isinstance(holder, dict):
            holder[str(rng.choice((f"{key}s", key[:-1], rng.choice(EXTREMES), rng.choice(nodes)[1])))] = holder.pop(key)
        case 5:
            holder[key] = value * rng.choice((2, 40)) if isinstance(value, (list, str)) else [value] * 3
        case 6:
            holder[key] = _scaled(value, rng)
        case _:
            for _ in range(rng.choice((1, 1, 5, 60))):
                holder[key] = rng.choice(([holder[key]], {"a": holder[key]}))
    return box.get("", {})


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _nodes(value)


def _scaled(value: Any, rng: Random) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return rng.choice((-value, value + 1, value - 1, value * 2, value * 10**9, value / 3, str(value), value * 1000))
    return mutate_bytes(str(value).encode(), rng).decode("utf-8", "replace")


def mutate_lines(data: bytes, rng: Random) -> bytes:
    """Lines deleted, repeated, swapped; a cell of one made extreme, deleted, repeated or swapped with another."""
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            del lines[at]
        case 1:
            lines[at:at] = [lines[other]] * rng.choice((1, 3, 100))
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = mutate_bytes(lines[at], rng)
        case _:
            separator = next((mark for mark in (b"\t", b",", b": ", b" ") if mark in lines[at]), b",")
            cells = lines[at].split(separator)
            place = rng.randrange(len(cells))
            cells[place : place + rng.randrange(2)] = [
                rng.choice(
                    (str(rng.choice(EXTREMES)).encode("utf-8", "replace"), rng.choice(cells), b"-" + cells[place])
                )
            ] * rng.choice((0, 1, 1, 1, 2))
            lines[at] = separator.join(cells)
    return b"\n".join(lines)


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


def _npy_header(data: bytes, rng: Random) -> bytes:
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
            codec = rng.choice((_npy_header, mutate_bytes)) if name.endswith(".npy") else mutate_bytes
            members[at] = (name, codec(content, rng))
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of repeated names
        with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for member, text in members:
                archive.writestr(member, text)
    return stream.getvalue()


def _inside_gzip(inner: str) -> Mutation:
    return lambda data, rng: gzip.compress(mutated(gzip.decompress(data), inner, rng), 1)


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


def files_of(folder: Path) -> list[Path]:
    """The files below a folder, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
