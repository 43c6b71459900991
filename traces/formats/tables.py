"""Text tables of research code: moe-beyond and DynaNDE (CSV), ESFT (tab-separated)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.formats.files import MAX_LINE_BYTES, csv_rows, data_files, number
from traces.formats.gather import MAX_TOP_K, Rows, gather, half, listed
from traces.formats.repair import to_trace
from traces.recording import ImportOptions
from traces.routing import RoutingTrace

_BEYOND = ("Layer ID", "Batch Number", "Token", "Activated Expert IDs")


def import_moe_beyond(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of moe-beyond CSV files, one per prompt; rows of a layer follow the text, ids are not ordered by weight."""
    keys: list[tuple[int, int, int]] = []
    ids: list[list[int]] = []
    sequences: dict[tuple[Path, int], int] = {}
    for file in data_files(path, "*.csv"):
        seen: Counter[tuple[int, int]] = Counter()
        tokens: dict[tuple[int, int], str] = {}
        for where, (layer_text, batch_text, token, experts) in csv_rows(file, _BEYOND):
            layer, batch = number(layer_text, where), number(batch_text, where)
            place = seen[layer, batch]
            seen[layer, batch] += 1
            if tokens.setdefault((batch, place), token) != token:
                raise TraceError(f"{where}: token {place} differs from the one in other layers; rows are missing")
            keys.append((sequences.setdefault((file, batch), len(sequences)), place, layer))
            ids.append(_list(experts, where))
    recording = gather(listed(keys, ids, [], path.name), phase="prefill", identity="requests")
    return to_trace(recording, options, "moe-beyond expert activations")


def _list(text: str, where: str) -> list[int]:
    match = re.fullmatch(r"\s*\[([-0-9,\s]*)\]\s*", text)
    if match is None:
        raise TraceError(f"{where}: '{text[:40]}' is no list of expert numbers; export the file again")
    return [number(part, where) for part in re.split(r"[,\s]+", match[1].strip()) if part]


def import_dynande(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of DynaNDE's dense CSV files: layer_id, token_id, expert_0 .. expert_N (gate weight, 0 if not selected).

    Rows of a layer follow the file; FLAME-MoE rows are interleaved (see `deinterleave`).
    """
    blocks = [_dense_csv(file) for file in data_files(path, "*.csv")]
    if len({gates.shape[1] for _, gates in blocks}) != 1:
        raise TraceError("the files differ in their number of experts; import them separately")
    keys = np.concatenate([key for key, _ in blocks])
    gates = np.concatenate([gates for _, gates in blocks])
    if len(gates) == 0:
        raise TraceError("no rows in the file; is it a DynaNDE trace?")
    selected = (gates > 0).sum(axis=1)
    width = int(selected.max())
    if not 0 < width <= MAX_TOP_K:
        raise TraceError(f"tokens select up to {width} experts; expected 1..{MAX_TOP_K} gate weights above 0")
    ids = np.argsort(-gates, axis=1, kind="stable")[:, :width]
    weights = half(np.take_along_axis(gates, ids, axis=1), path.name)
    ids[np.arange(width) >= selected[:, None]] = -1
    place, n_layers = _places(keys)
    rows = Rows(sequence=np.zeros_like(place), token=place, layer=keys[:, 0], ids=ids.astype(np.int16), weights=weights)
    if n_layers * (int(place.max()) + 1) != len(place):
        raise TraceError("the layers have different numbers of rows, so tokens cannot be matched; export again")
    recording = gather(rows, phase="prefill", identity="stream" if options.deinterleave is None else "requests")
    return to_trace(replace(recording, n_experts=gates.shape[1]), options, "DynaNDE gate tables")


def _dense_csv(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(layer, token) int64 [row, 2] and gate weights [row, expert]."""
    keys: list[tuple[int, int]] = []
    gates: list[list[str]] = []
    for where, row in csv_rows(path, ("layer_id", "token_id", "expert_0")):
        keys.append((number(row[0], where), number(row[1], where)))
        gates.append(row[2:])
    return np.array(keys, dtype=np.int64).reshape(-1, 2), _floats(gates, path.name)


def _floats(rows: Sequence[Sequence[str]], where: str) -> NDArray[np.float64]:
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise TraceError(f"{where}: a gate weight is not a number ({error}); export the file again") from None
    if values.ndim == 2 and not (np.isfinite(values) & (values >= 0)).all():
        raise TraceError(f"{where}: a gate weight is negative or not finite; export the file again")
    return values.reshape(len(rows), -1) if len(rows) else np.empty((0, 1))


def _places(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Running number of each row inside its layer, and the number of layers; token_id must agree between layers."""
    place = np.empty(len(keys), dtype=np.int64)
    layers = np.unique(keys[:, 0])
    tokens = [keys[keys[:, 0] == layer, 1] for layer in layers]
    if any(not np.array_equal(tokens[0], other) for other in tokens[1:]):
        raise TraceError("the layers list different tokens, so rows cannot be matched; export all layers of one run")
    for layer in layers:
        at = keys[:, 0] == layer
        place[at] = np.arange(int(at.sum()))
    return place, len(layers)


def import_esft(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of ESFT logs expert_weights_{layer}.txt: a line per sequence, ids, two tabs, weights, all tab-joined.

    `path` holds the files, or folders rank_* of them. Needs `options.top_k`, since a line joins all tokens.
    """
    if options.top_k is None or not 1 <= options.top_k <= MAX_TOP_K:
        raise TraceError("a line joins the experts of all tokens; give --top-k of the model")
    keys: list[tuple[int, int, int]] = []
    ids: list[Any] = []
    weights: list[Any] = []
    sequences: dict[tuple[str, int], int] = {}
    for file in data_files(path, "expert_weights_*.txt"):
        match = re.fullmatch(r"expert_weights_([0-9]{1,4})", file.stem)
        if match is None:
            raise TraceError(f"{file.name}: no layer number in the name; expected expert_weights_LAYER.txt")
        for line, (experts, gates) in enumerate(_esft_lines(file, options.top_k)):
            sequence = sequences.setdefault((str(file.parent), line), len(sequences))
            keys += [(sequence, token, int(match[1])) for token in range(len(experts))]
            ids += experts
            weights += gates
    recording = gather(listed(keys, ids, weights, path.name), phase="prefill", identity="requests")
    return to_trace(replace(recording, top_k=options.top_k), options, "ESFT expert weights")


def _esft_lines(path: Path, top_k: int) -> list[tuple[list[list[int]], list[list[float]]]]:
    """(ids [token][k], weights [token][k]) of each line."""
    sequences: list[tuple[list[list[int]], list[list[float]]]] = []
    with path.open("rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            where = f"{path.name} line {len(sequences) + 1}"
            id_text, _, weight_text = line.decode("ascii", errors="replace").strip("\r\n").partition("\t\t")
            experts = [number(part, where) for part in id_text.split("\t")]
            gates = [_float(part, where) for part in weight_text.split("\t")]
            if len(line) > MAX_LINE_BYTES or len(experts) != len(gates) or len(experts) % top_k:
                raise TraceError(
                    f"{where}: {len(experts)} ids and {len(gates)} weights are no multiples of k = {top_k}"
                )
            cuts = range(0, len(experts), top_k)
            sequences.append(([experts[i : i + top_k] for i in cuts], [gates[i : i + top_k] for i in cuts]))
    return sequences


def _float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise TraceError(f"{where}: '{text[:40]}' is no gate weight; is the line truncated?") from None
