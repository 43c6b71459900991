"""FLAME-MoE routing (CMU-FLAME/FLAME-MoE-Traces): Parquet files of the data set, and arrays cut from it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from scenarios.reading import regular
from traces.formats.files import data_files, whole_numbers
from traces.formats.gather import checked_ids, counting, half
from traces.formats.repair import to_trace
from traces.recording import ImportOptions, RawIds, Recording
from traces.routing import RoutingTrace
from traces.storage import read_arrays

MAX_ROWS = 1 << 28
N_EXPERTS = 64  # all models of the FLAME-MoE family
SOURCE = "FLAME-MoE traces"


def import_npz(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of an npz with `ids` [token, layer, k], `offsets` and optionally `probs`; rows already in text order."""
    arrays = read_arrays(path)
    if not {"ids", "offsets"} <= set(arrays):
        raise TraceError(f"the archive holds {', '.join(sorted(arrays)) or 'nothing'}, but must hold ids and offsets")
    ids = checked_ids(whole_numbers(arrays["ids"], "ids", ndim=3), "ids")
    offsets = whole_numbers(arrays["offsets"], "offsets", ndim=1).astype(np.int64)
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) <= 0).any():
        raise TraceError(f"offsets must rise from 0 to the {len(ids)} tokens of ids; copy the file again")
    probs = arrays.get("probs")
    if probs is not None and probs.shape != ids.shape:
        raise TraceError(f"probs have shape {probs.shape}, ids {ids.shape}; copy the file again")
    recording = Recording(
        ids=np.ascontiguousarray(ids.transpose(1, 2, 0)),
        weights=None if probs is None else half(np.ascontiguousarray(probs.transpose(1, 2, 0)), "probs"),
        offsets=offsets,
        positions=counting(np.diff(offsets)),
        layers=None,
        phase="prefill",
        identity="requests",
    )
    return to_trace(recording, _with_experts(options), SOURCE)


def import_parquet(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of samples/NNN.parquet (`token_id`) and actives/iter_NNNN/layer_NN.parquet (`scores`, `indices`).

    Row i is the same token in every file; every sample file is one block of interleaved sequences. `path` is the folder
    that holds both, or one iteration below it. Needs pyarrow.
    """
    iteration = _iteration(path)
    samples = data_files(iteration.parent.parent / "samples", "*.parquet")
    lengths = np.array([_n_rows(file) for file in samples], dtype=np.int64)
    files = data_files(iteration, "layer_*.parquet")
    numbers = [re.fullmatch(r"layer_([0-9]{1,4})", file.stem) for file in files]
    layers = [_layer(file, int(lengths.sum())) for file in files]
    if len({ids.shape for ids, _ in layers}) != 1 or None in numbers:
        raise TraceError(
            f"{iteration.name}: layer files differ in experts per token, or have no number; copy them again"
        )
    recording = Recording(
        ids=np.stack([ids.T for ids, _ in layers]),
        weights=np.stack([weights.T for _, weights in layers]),
        offsets=np.concatenate(([0], np.cumsum(lengths[lengths > 0]))),
        positions=counting(lengths),
        layers=tuple(int(match[1]) for match in numbers if match is not None),
        phase="prefill",
        identity="stream" if options.deinterleave is None else "requests",
    )
    return to_trace(recording, _with_experts(options), f"{SOURCE}, {iteration.name}")


def _iteration(path: Path) -> Path:
    if path.is_dir() and path.name.startswith("iter_"):
        return path
    found = sorted((path / "actives").glob("iter_*"))
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise TraceError(f"expected one folder actives/iter_*, found {names}; give the path of one of them")
    return found[0]


def _layer(path: Path, n_tokens: int) -> tuple[RawIds, NDArray[np.float16]]:
    """ids [token, k] and weights [token, k] of one layer file."""
    table = _read_parquet(path, ["indices", "scores"])
    ids = checked_ids(whole_numbers(_lists(table, "indices", n_tokens, path.name), path.name, ndim=2), path.name)
    weights = half(_lists(table, "scores", n_tokens, path.name), path.name)
    if ids.shape != weights.shape:
        raise TraceError(f"{path.name}: {ids.shape[1]} indices, but {weights.shape[1]} scores per token; copy it again")
    return ids, weights


def _lists(table: Any, column: str, n_tokens: int, where: str) -> NDArray[Any]:
    """A list column of equal lengths as array [token, k]."""
    try:
        lists = table.column(column).combine_chunks()
        flat = np.asarray(lists.flatten().to_numpy(zero_copy_only=False))
        lengths = np.asarray(lists.value_lengths().to_numpy(zero_copy_only=False))
    except Exception as error:  # pyarrow answers a wrong column type with several exception types
        raise TraceError(f"{where}: column '{column}' holds no lists of numbers ({type(error).__name__})") from None
    if len(lengths) != n_tokens or n_tokens == 0 or lengths.min() != lengths.max() or flat.dtype.kind not in "iuf":
        raise TraceError(
            f"{where}: column '{column}' must hold {n_tokens} lists of equal length, as samples/ has tokens"
        )
    return flat.reshape(n_tokens, -1)


def _n_rows(path: Path) -> int:
    return int(_read_parquet(path, ["token_id"]).num_rows)


def _read_parquet(path: Path, columns: list[str]) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise TraceError("reading Parquet needs pyarrow; install it with `pip install 'moesim[tables]'`") from None
    try:
        n_rows = parquet.read_metadata(regular(path)).num_rows
        table = None if n_rows > MAX_ROWS else parquet.read_table(path, columns=columns)
    except Exception as error:  # a corrupt file surfaces as OSError, ArrowInvalid, KeyError and more
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise TraceError(f"{path.name}: not a readable Parquet file ({reason}); copy it again") from None
    if table is None:
        raise TraceError(f"{path.name}: {n_rows:,} tokens, more than {MAX_ROWS:,}; split the file")
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise TraceError(f"{path.name}: no column '{missing[0]}'; is it the right file?")
    return table


def _with_experts(options: ImportOptions) -> ImportOptions:
    return options if options.n_experts is not None else replace(options, n_experts=N_EXPERTS)
