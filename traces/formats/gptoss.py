"""gpt-oss expert fingerprints (github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, Apache-2.0)."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.errors import TraceError
from traces.formats.files import data_files, need, read_json, whole_numbers
from traces.formats.gather import checked_ids, counting, gather, listed
from traces.formats.repair import to_trace
from traces.recording import Finding, ImportOptions, Recording
from traces.routing import RoutingTrace
from traces.storage import read_arrays

N_EXPERTS = 32  # gpt-oss-20b, the only model of this data set (config.json: num_local_experts)
SOURCE = "gpt-oss-20b expert fingerprints"


def import_fingerprint(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of a folder with ids.npz (`ids` [token, layer, k], `offsets`) and records.json: decode, batch 1."""
    arrays = read_arrays(path / "ids.npz" if path.is_dir() else path)
    if not {"ids", "offsets"} <= set(arrays):
        raise TraceError(f"ids.npz holds {', '.join(sorted(arrays)) or 'nothing'}, but must hold ids and offsets")
    ids = checked_ids(whole_numbers(arrays["ids"], "ids", ndim=3), "ids")
    offsets = whole_numbers(arrays["offsets"], "offsets", ndim=1).astype(np.int64)
    lengths = np.diff(offsets)
    if ids.size == 0 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(ids) or (lengths <= 0).any():
        raise TraceError(f"offsets must rise from 0 to the {len(ids)} tokens of ids; copy ids.npz again")
    records_path = (path if path.is_dir() else path.parent) / "records.json"
    firsts, labels, finding = _records(read_json(records_path), lengths)
    recording = Recording(
        ids=np.ascontiguousarray(ids.transpose(1, 2, 0)),
        offsets=offsets,
        positions=counting(lengths) + np.repeat(firsts, lengths),
        layers=tuple(range(ids.shape[1])),
        phase="decode",
        identity="requests",
        ordered=True,
        labels=labels,
        findings=(finding,),
    )
    return to_trace(recording, _with_experts(options), SOURCE)


def _records(content: Any, lengths: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[str, ...], Finding]:
    if not isinstance(content, list) or len(content) != len(lengths):
        raise TraceError(f"records.json must list the {len(lengths)} records of ids.npz; copy both from the same place")
    firsts, labels, gaps = [], [], 0
    for r, record in enumerate(content):
        where = f"records.json entry {r}"
        if not isinstance(record, dict):
            raise TraceError(f"{where}: expected an object; copy the file again")
        if need(record, "n_routed", int, where) != lengths[r]:
            raise TraceError(f"{where}: says {record['n_routed']} tokens, but ids.npz holds {lengths[r]}")
        firsts.append(need(record, "first_pos", int, where))
        labels.append(need(record, "dataset", str, where))
        gaps += record.get("contiguous") is False
    message = f"{gaps} records have gaps, their positions are approximate" if gaps else "all records are contiguous"
    finding = Finding(check="contiguous records", count=gaps, message=message)
    return whole_numbers(firsts, "first_pos", ndim=1).astype(np.int64), tuple(labels), finding


def import_json(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of the raw JSON files: `router_data`[] = {token_P: {layer_L: {selected_experts, selected_probs}}}."""
    keys: list[tuple[int, int, int]] = []
    ids: list[Any] = []
    probs: list[Any] = []
    labels: list[str] = []
    serial, empty = count(), 0
    for file in data_files(path, "*.json"):
        content = read_json(file)
        generations = need(content, "router_data", list, file.name) if isinstance(content, dict) else None
        if generations is None:
            raise TraceError(f"{file.name}: expected an object with 'router_data'; is it a fingerprint file?")
        for generation in generations:
            sequence = next(serial)
            entries = list(_tokens(generation, f"{file.name} record {sequence}"))
            empty += not entries
            keys += [(sequence, token, layer) for token, layer, _, _ in entries]
            ids += [experts for _, _, experts, _ in entries]
            probs += [weights for _, _, _, weights in entries]
            labels.append(file.parent.name if file != path else "")
    rows = listed(keys, ids, probs, "router_data")
    message = f"{empty} records hold no routing and were left out" if empty else "none"
    finding = Finding(check="empty records", count=empty, message=message, changed=empty > 0)
    recording = gather(rows, phase="decode", identity="requests", labels=labels)
    return to_trace(replace(recording, findings=(finding,)), _with_experts(options), SOURCE)


def _tokens(generation: Any, where: str) -> Any:
    """(token, layer, experts, weights) of one generation."""
    if not isinstance(generation, dict):
        raise TraceError(f"{where}: expected an object of tokens; export the file again")
    for token_name in generation:
        layers = need(generation, token_name, dict, where)
        for layer_name in layers:
            entry = need(layers, layer_name, dict, f"{where} {token_name}")
            place = f"{where} {token_name} {layer_name}"
            experts, weights = need(entry, "selected_experts", list, place), need(entry, "selected_probs", list, place)
            yield _index(token_name, "token", place), _index(layer_name, "layer", place), experts, weights


def _index(name: str, kind: str, where: str) -> int:
    match = re.fullmatch(rf"{kind}_([0-9]{{1,9}})", name)
    if match is None:
        raise TraceError(f"{where}: '{name[:40]}' is no {kind} number; export the file again")
    return int(match[1])


def _with_experts(options: ImportOptions) -> ImportOptions:
    return options if options.n_experts is not None else replace(options, n_experts=N_EXPERTS)
