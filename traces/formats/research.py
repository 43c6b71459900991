"""Formats of research code: ExFlow, MoE-Infinity, moe-balance, speculative-moe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scenarios.errors import TraceError
from traces.counts import ExpertCounts
from traces.formats.files import data_files, json_records, need, read_npy, whole_numbers
from traces.formats.gather import checked_ids, counting, gather, joined, listed
from traces.formats.repair import to_counts, to_trace
from traces.recording import Finding, ImportOptions, Recording
from traces.routing import RoutingTrace
from traces.storage import read_arrays


def import_exflow(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of an ExFlow .npy file: int [token, layer], the top-1 expert only."""
    ids = checked_ids(whole_numbers(read_npy(path), path.name, ndim=2), path.name)
    if ids.size == 0:
        raise TraceError("no tokens in the file; is it an ExFlow trace?")
    recording = Recording(
        ids=np.ascontiguousarray(ids.T)[:, None, :],
        offsets=np.array([0, len(ids)], dtype=np.int64),
        positions=counting(np.array([len(ids)])),
        layers=None,
        phase="mixed",
        identity="stream",
    )
    return to_trace(recording, options, "ExFlow trace, top-1")


def import_moe_infinity(path: Path, options: ImportOptions) -> ExpertCounts:
    """Counts of MoE-Infinity's store of expert-activation matrices: .npy [sequence, layer, expert]."""
    matrices = whole_numbers(read_npy(path), path.name, ndim=3)
    if matrices.size == 0:
        raise TraceError("no matrices in the file; is it a MoE-Infinity store?")
    return to_counts(matrices, None, "sequence", options, "MoE-Infinity expert-activation matrices")


def import_moe_balance(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of moe-balance: .npz per request (`routed_experts` [token, layer, k]), or JSON lines per layer."""
    if path.is_file() and path.suffix != ".npz":
        return to_trace(_balance_lines(path), options, "moe-balance trace")
    blocks, empty = [], 0
    for file in data_files(path, "*.npz"):
        arrays = read_arrays(file)
        if "routed_experts" not in arrays:
            raise TraceError(f"{file.name}: no array 'routed_experts'; is it a moe-balance request?")
        block = whole_numbers(arrays["routed_experts"], file.name, ndim=3)
        empty += len(block) == 0
        blocks += [checked_ids(block, file.name)] if len(block) else []
    ids, offsets = joined(blocks, path.name)
    message = f"{empty} requests hold no routing and were left out" if empty else "none"
    recording = Recording(
        ids=ids,
        offsets=offsets,
        positions=counting(np.diff(offsets)),
        layers=tuple(range(len(ids))),
        phase="mixed",
        identity="requests",
        findings=(Finding(check="empty records", count=empty, message=message, changed=empty > 0),),
    )
    return to_trace(recording, options, "moe-balance requests")


def _balance_lines(path: Path) -> Recording:
    """Recording of lines {layer, batch_id, topk_experts [token][k], topk_weights?}."""
    batches: dict[str, int] = {}
    keys: list[tuple[int, int, int]] = []
    ids: list[Any] = []
    weights: list[Any] = []
    for where, record in json_records(path):
        batch = batches.setdefault(str(record.get("batch_id")), len(batches))
        layer, rows = need(record, "layer", int, where), need(record, "topk_experts", list, where)
        keys += [(batch, token, layer) for token in range(len(rows))]
        ids += rows
        weights += need(record, "topk_weights", list, where) if "topk_weights" in record else []
    return gather(listed(keys, ids, weights, path.name), phase="mixed", identity="steps")


def import_speculative_moe(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of speculative-moe JSON lines {dataset, problem_id, layer, token_idx, experts, gating_probs}."""
    problems: dict[tuple[str, str], int] = {}
    keys: list[tuple[int, int, int]] = []
    ids: list[Any] = []
    weights: list[Any] = []
    for where, record in json_records(path):
        name = (need(record, "dataset", str, where), str(record.get("problem_id")))
        problem = problems.setdefault(name, len(problems))
        keys.append((problem, need(record, "token_idx", int, where), need(record, "layer", int, where)))
        ids.append(need(record, "experts", list, where))
        weights.append(need(record, "gating_probs", list, where))
    labels = [dataset for dataset, _ in problems]
    recording = gather(listed(keys, ids, weights, path.name), phase="mixed", identity="requests", labels=labels)
    return to_trace(recording, options, "speculative-moe routing")
