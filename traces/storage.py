"""Routing traces on disk: one uncompressed `.npz`, whose ids are memory-mapped on reading."""

from __future__ import annotations

import json
import math
import mmap
import zipfile
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from scenarios.errors import TraceError
from scenarios.files import whole_file
from scenarios.reading import check_sizes, plain_json, regular
from traces.routing import Ids, Phase, Provenance, RoutingTrace

FAMILY = "moesim-routing-"
FORMAT = f"{FAMILY}1"


def save_trace(trace: RoutingTrace, path: Path) -> None:
    """Write `trace` as an uncompressed npz; the file appears whole or not at all."""
    meta = {
        "format": FORMAT,
        "n_experts": trace.n_experts,
        "moe_layers": trace.moe_layers,
        "phase": trace.phase,
        "labels": trace.labels,
        "weight_ordered": trace.weight_ordered,
        "variable_k": trace.variable_k,
        "provenance": {name: getattr(trace.provenance, name) for name in Provenance.__dataclass_fields__},
    }
    arrays: dict[str, NDArray[Any]] = {
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
        "ids": trace.ids,
        "offsets": trace.offsets,
        "positions": trace.positions,
    }
    if trace.weights is not None:
        arrays["weights"] = trace.weights
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def load_trace(path: Path, *, check_ids: bool = True) -> RoutingTrace:
    """Read a trace that `save_trace` wrote; ids and weights stay on disk and are mapped.

    Raises TraceError where the file is missing, truncated, corrupt or of another format.
    """
    arrays = read_arrays(path)
    meta = _meta(path, arrays)
    try:
        return RoutingTrace(
            ids=cast(Ids, arrays["ids"]),
            n_experts=_number(meta["n_experts"]),
            offsets=_whole(arrays, "offsets").astype(np.int64),
            positions=_whole(arrays, "positions").astype(np.int32),
            moe_layers=tuple(_number(layer) for layer in meta["moe_layers"]),
            phase=_phase(meta["phase"]),
            provenance=Provenance(**_texts(meta["provenance"]), notes=tuple(map(str, meta["provenance"]["notes"]))),
            weights=arrays.get("weights"),
            labels=tuple(map(str, meta["labels"])),
            weight_ordered=bool(meta["weight_ordered"]),
            variable_k=bool(meta["variable_k"]),
            check_ids=check_ids,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TraceError(f"{path}: the trace lacks or misstates {error}") from None
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"a number: {value!r:.40}")
    return value


def _phase(value: Any) -> Phase:
    if value not in get_args(Phase):
        raise ValueError(f"its phase: {value!r:.40}")
    return cast(Phase, value)


def _texts(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance without its notes. Raises ValueError where an entry is no text."""
    own = {name: value for name, value in provenance.items() if name != "notes"}
    if not all(isinstance(value, str) for value in own.values()):
        raise ValueError(f"its provenance: {own!r:.80}")
    return own


def _whole(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """A column of whole numbers from 0 on that fit in 31 bits, or in 63 where they are offsets."""
    array, bits = arrays[name], 63 if name == "offsets" else 31
    if array.dtype.kind not in "iu" or (array.size and (int(array.min()) < 0 or int(array.max()) >= 1 << bits)):
        raise ValueError(f"{name}: {array.dtype} is not whole numbers of {bits} bits")
    return array


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an npz by name, without pickle; large uncompressed ones stay on disk and are mapped.

    Raises TraceError where the file is missing, truncated or corrupt.
    """
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            check_sizes(archive)
            return {Path(entry.filename).stem: _member(path, archive, entry) for entry in archive.infolist()}
    except FileNotFoundError:
        raise TraceError(f"{path}: no such trace file") from None
    except Exception as error:  # a damaged archive surfaces as any type that zipfile, zlib or numpy's tokenizer raise
        raise TraceError(f"{path}: not a readable trace ({error}); write it again with `moesim trace import`") from None


def _meta(path: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    try:
        meta = plain_json(arrays["meta"].tobytes())
        if meta["format"] == FORMAT:
            return cast(dict[str, Any], meta)
        if str(meta["format"]).startswith(FAMILY):
            raise TraceError(f"{path}: format {meta['format']}, where this moesim reads {FORMAT}; install a later one")
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    remedy = "convert it with `moesim trace import FORMAT FILE`"
    raise TraceError(f"{path}: not a moesim trace ({', '.join(sorted(arrays)) or 'no arrays'} inside); {remedy}")


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """One array of the archive: mapped where it is stored uncompressed, read (and CRC-checked) where not."""
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        header_bytes = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds Python objects")
    size = header_bytes + math.prod(shape) * dtype.itemsize
    if size != entry.file_size:
        raise ValueError(f"{entry.filename} says shape {shape} {dtype}, but holds {entry.file_size} bytes")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < 1 << 16:
        with archive.open(entry) as stream:
            return npy.read_array(stream, allow_pickle=False)
    with path.open("rb") as raw:
        raw.seek(entry.header_offset + 26)
        name_bytes, extra_bytes = (int(n) for n in np.frombuffer(raw.read(4), "<u2"))
    start = entry.header_offset + 30 + name_bytes + extra_bytes + header_bytes
    if start + size - header_bytes > path.stat().st_size:
        raise ValueError(f"{entry.filename} is truncated")
    order = "F" if fortran else "C"
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)  # type: ignore[call-overload,no-any-return]


LARGE_BYTES = 1 << 28


def release_pages(array: NDArray[Any]) -> None:
    """Give back the memory of what was read of a large mapped array; the data stays on disk and is read anew."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.base if isinstance(base, np.ndarray) else None
    if base is not None and array.nbytes >= LARGE_BYTES and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
