"""Tensor files: safetensors, read here, and torch.save files, by PyTorch and without arbitrary pickle."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from scenarios.reading import check_sizes, regular
from traces.formats.files import need, parse_json, whole_numbers

MAX_HEADER_BYTES = 100 << 20  # the limit of the safetensors library itself
_DTYPES = {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1", "F64": "<f8", "F32": "<f4", "F16": "<f2",
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file: 8 bytes header length, a JSON header, raw little-endian values."""
    raw = np.fromfile(regular(path), dtype=np.uint8)
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if len(raw) < 8 or length > min(len(raw) - 8, MAX_HEADER_BYTES):
        raise TraceError(f"{path.name}: no safetensors header, or the file is truncated; copy it again")
    header = parse_json(raw[8 : 8 + length].tobytes(), f"{path.name} header")
    if not isinstance(header, dict):
        raise TraceError(f"{path.name}: the safetensors header is no object; copy the file again")
    header.pop("__metadata__", None)
    values = raw[8 + length :]
    return {name: _tensor(values, entry, f"{path.name} tensor '{name}'") for name, entry in header.items()}


def _tensor(values: NDArray[np.uint8], entry: Any, where: str) -> NDArray[Any]:
    if not isinstance(entry, dict):
        raise TraceError(f"{where}: described by {type(entry).__name__}, not by an object; copy the file again")
    dtype = _DTYPES.get(need(entry, "dtype", str, where))
    shape, span = need(entry, "shape", list, where), need(entry, "data_offsets", list, where)
    if dtype is None or not all(type(n) is int and n >= 0 for n in (*shape, *span)) or len(span) != 2:
        raise TraceError(f"{where}: unsupported dtype {entry['dtype']}, shape or offsets; copy the file again")
    start, end = span
    if not start <= end <= len(values) or math.prod(shape) * np.dtype(dtype).itemsize != end - start:
        raise TraceError(f"{where}: offsets {start}-{end} do not hold shape {shape}; the file is truncated or corrupt")
    return values[start:end].view(dtype).reshape(shape)


def read_torch(path: Path) -> Any:
    """Content of a `torch.save` file (an archive, as of PyTorch 1.6), by the restricted unpickler (weights_only)."""
    try:
        import torch
    except ImportError:
        raise TraceError("reading .pt files needs PyTorch; install it with `pip install 'moesim[capture]'`") from None
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            check_sizes(archive)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt archive surfaces as almost any exception type of torch, zipfile or pickle
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise TraceError(f"{path.name}: not a plain torch.save file ({reason}); dump the recording again") from None


def write_torch(content: Mapping[str, object], path: Path) -> None:
    """Write a `torch.save` file of a dict whose arrays become tensors; it can be read with weights_only."""
    try:
        import torch
    except ImportError:
        raise TraceError("writing .pt files needs PyTorch; install it with `pip install 'moesim[capture]'`") from None
    plain = {
        name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for name, value in content.items()
    }
    torch.save(plain, path)


def torch_array(value: Any, where: str, *, ndim: int, file_bytes: int) -> NDArray[Any]:
    """Whole-number array of a tensor or nested list that `read_torch` returned."""
    limit = 16 * file_bytes + (1 << 20)  # a tensor with stride 0 may be larger than its storage, but not by much
    try:
        if hasattr(value, "numel") and int(value.numel()) * int(value.element_size()) > limit:
            raise TraceError(f"{where}: claims {int(value.numel())} values in {file_bytes} bytes; the file is corrupt")
        value = value.numpy() if hasattr(value, "numpy") else value
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise TraceError(f"{where}: not a plain tensor ({error}); dump the recording again") from None
    return whole_numbers(value, where, ndim=ndim)
