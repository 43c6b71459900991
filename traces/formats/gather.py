"""From lists of rows, as files hold them, to the arrays of a `Recording`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.formats.files import whole_numbers
from traces.recording import MAX_EXPERTS, Identity, RawIds, Recording
from traces.routing import Phase

MAX_TOP_K = 256
MAX_EMPTY_SHARE = 256  # a dense array may be this many times larger than the rows that fill it


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One entry per (sequence, token, layer) in any order: int64 [row] each, ids int16 [row, k], weights or None."""

    sequence: NDArray[np.int64]
    token: NDArray[np.int64]
    layer: NDArray[np.int64]
    ids: NDArray[np.int16]
    weights: NDArray[np.float16] | None = None


def gather(rows: Rows, *, phase: Phase, identity: Identity, labels: Sequence[str] = ()) -> Recording:
    """Recording of rows, sorted by sequence and token; a (token, layer) without a row gets -1.

    `labels` holds one label per sequence number.

    Raises TraceError where there is no row, a row occurs twice, or the rows fill the array too thinly to be routing.
    """
    if not len(rows.sequence):
        raise TraceError("no routing rows in the file; is it the right format?")
    order = np.lexsort((rows.token, rows.sequence))
    sequence, token = rows.sequence[order], rows.token[order]
    new_sequence = np.append(True, sequence[1:] != sequence[:-1])
    new_token = new_sequence | np.append(True, token[1:] != token[:-1])
    at = np.empty(len(order), dtype=np.int64)
    at[order] = np.cumsum(new_token) - 1
    layers, layer_at = np.unique(rows.layer, return_inverse=True)
    n_tokens = int(new_token.sum())
    _check_filled(len(order), len(layers), n_tokens, layer_at.reshape(-1) * n_tokens + at)
    ids = np.full((len(layers), rows.ids.shape[1], n_tokens), -1, dtype=np.int16)
    ids[layer_at.reshape(-1), :, at] = rows.ids
    weights = None
    if rows.weights is not None:
        weights = np.zeros(ids.shape, dtype=np.float16)
        weights[layer_at.reshape(-1), :, at] = rows.weights
    starts = np.cumsum(new_token)[new_sequence] - 1
    return Recording(
        ids=ids,
        weights=weights,
        offsets=np.append(starts, n_tokens),
        positions=token[new_token],
        layers=tuple(int(layer) for layer in layers),
        phase=phase,
        identity=identity,
        labels=tuple(labels[s] for s in sequence[new_sequence]) if any(labels) else (),
    )


def _check_filled(n_rows: int, n_layers: int, n_tokens: int, cell: NDArray[np.int64]) -> None:
    if n_layers * n_tokens > MAX_EMPTY_SHARE * n_rows:
        raise TraceError(
            f"{n_rows} rows name {n_layers} layers and {n_tokens} tokens: most tokens lack most layers; "
            "the layer column is wrong or the file is truncated"
        )
    filled = np.bincount(cell, minlength=n_layers * n_tokens)
    if filled.max() > 1:
        raise TraceError(f"{int((filled > 1).sum())} (token, layer) pairs have more than one row; split joined runs")


def listed(keys: Sequence[tuple[int, int, int]], ids: Sequence[Any], weights: Sequence[Any], where: str) -> Rows:
    """Rows of lists: keys (sequence, token, layer), expert ids and gate weights per row (`weights` may be empty)."""
    if weights and len(weights) != len(ids):
        raise TraceError(f"{where}: gate weights for {len(weights)} of {len(ids)} rows; export the file again")
    table = whole_numbers(keys, where, ndim=2).astype(np.int64) if keys else np.empty((0, 3), dtype=np.int64)
    rows = id_rows(ids, where)
    return Rows(
        sequence=table[:, 0],
        token=table[:, 1],
        layer=table[:, 2],
        ids=rows,
        weights=weight_rows(weights, rows, where) if weights else None,
    )


def id_rows(rows: Sequence[Any], where: str) -> NDArray[np.int16]:
    """Lists of expert ids as int16 [row, k], padded with -1 where lists are short."""
    lengths = _lengths(rows, where)
    flat = checked_ids(whole_numbers([value for row in rows for value in row], where, ndim=1), where)
    return _padded(flat, lengths, -1)


def weight_rows(rows: Sequence[Any], like: NDArray[np.int16], where: str) -> NDArray[np.float16]:
    """Lists of gate weights as float16 [row, k], zero where `like` is padded."""
    lengths = _lengths(rows, where)
    if (lengths != (like >= 0).sum(axis=1)).any():
        raise TraceError(f"{where}: some tokens have more gate weights than experts, or fewer; export the file again")
    try:
        flat = np.array([value for row in rows for value in row], dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise TraceError(f"{where}: a gate weight is not a number; export the file again") from None
    return _padded(half(flat, where), lengths, 0)


def half(weights: NDArray[Any], where: str) -> NDArray[np.float16]:
    """Gate weights as float16.

    Raises TraceError where one is not finite or beyond float16.
    """
    if weights.dtype.kind not in "fiu" or not (np.abs(weights.astype(np.float64)) <= np.finfo(np.float16).max).all():
        raise TraceError(f"{where}: a gate weight is not finite, or beyond 65504; export the file again")
    return weights.astype(np.float16)


def checked_ids(ids: RawIds, where: str) -> RawIds:
    """Expert ids as uint8 or int16, checked to lie in -1..32766."""
    if ids.dtype == np.uint8 or ids.size == 0:
        return ids
    if int(ids.min()) < -1 or int(ids.max()) >= MAX_EXPERTS:
        raise TraceError(
            f"{where}: expert ids run from {int(ids.min())} to {int(ids.max())}, beyond -1..{MAX_EXPERTS - 1}"
        )
    return ids.astype(np.int16)


def _lengths(rows: Sequence[Any], where: str) -> NDArray[np.int64]:
    if not all(isinstance(row, list) for row in rows):
        raise TraceError(f"{where}: expected a list for each token; export the file again")
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if len(rows) and int(lengths.max()) > MAX_TOP_K:
        raise TraceError(
            f"{where}: a token has {int(lengths.max())} experts, more than {MAX_TOP_K}; is it the right format?"
        )
    return lengths


def _padded(flat: NDArray[Any], lengths: NDArray[np.int64], fill: int) -> NDArray[Any]:
    width = int(lengths.max()) if len(lengths) else 0
    dtype = np.float16 if flat.dtype.kind == "f" else np.int16
    out = np.full((len(lengths), width), fill, dtype=dtype)
    out[np.arange(width) < lengths[:, None]] = flat
    return out


def joined(blocks: Sequence[RawIds], where: str) -> tuple[RawIds, NDArray[np.int64]]:
    """Blocks [token, layer, k] of sequences as ids [layer, k, token] and offsets.

    Raises TraceError where blocks differ in layers or k, or there is no token.
    """
    shapes = {block.shape[1:] for block in blocks}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        listed = ", ".join(str(shape) for shape in sorted(shapes)[:4]) or "no sequence"
        raise TraceError(f"{where}: sequences must agree in (layers, k), got {listed}; import them separately")
    filled = [checked_ids(block, where) for block in blocks if len(block)]
    if not filled:
        raise TraceError(f"{where}: no tokens; is the recording empty?")
    offsets = np.concatenate(([0], np.cumsum([len(block) for block in filled])))
    return np.ascontiguousarray(np.concatenate(filled).transpose(1, 2, 0)), offsets.astype(np.int64)


def counting(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions 0, 1, 2, ... inside each sequence of the given lengths."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)
