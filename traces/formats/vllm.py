"""vLLM: routed experts of a response, and the JSON-lines log of the community hook (VLLM_LOG_MOE)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces import checks
from traces.formats.files import decode_base64, json_records, need, npy_bytes, whole_numbers
from traces.formats.gather import Rows, checked_ids, counting, gather, joined, listed
from traces.formats.repair import to_trace
from traces.recording import Finding, ImportOptions, RawIds, Recording
from traces.routing import RoutingTrace


def import_routed_experts(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of responses whose `routed_experts` is base64 of a .npy file [token, hidden layer, k].

    Reads choices[].routed_experts of the OpenAI endpoints, or objects with the key itself (and optionally
    `routed_experts_prompt_start`, the position of the first token).
    """
    blocks: list[RawIds] = []
    positions: list[NDArray[np.int64]] = []
    for where, record in json_records(path):
        for answer in _answers(record, where):
            array = npy_bytes(decode_base64(need(answer, "routed_experts", str, where), where), where)
            block = checked_ids(whole_numbers(array, where, ndim=3), where)
            start = answer.get("routed_experts_prompt_start", record.get("routed_experts_prompt_start", 0))
            if type(start) is not int or not 0 <= start < 1 << 30:
                raise TraceError(f"{where}: routed_experts_prompt_start is {start!r}, not a position")
            blocks.append(block)
            positions.append(start + np.arange(len(block), dtype=np.int64))
    ids, offsets = joined(blocks, path.name)
    recording = Recording(
        ids=ids,
        offsets=offsets,
        positions=np.concatenate(positions),
        layers=tuple(range(len(ids))),
        phase="mixed",
        identity="requests",
        top_k=options.top_k,
    )
    return to_trace(recording, options, "vLLM routed_experts")


def _answers(record: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    for answer in need(record, "choices", list, where) if "choices" in record else [record]:
        if not isinstance(answer, dict):
            raise TraceError(f"{where}: a choice is {type(answer).__name__}, not an object; export the file again")
        yield answer


def import_hook(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of a hook log: a line of type meta, then lines {type: route, req_id, token_idx, layer, topk_ids, ...}.

    A request whose token_idx starts again counts as a new sequence.
    """
    meta: dict[str, Any] = {}
    requests: dict[str, int] = {}
    keys: list[tuple[int, int, int]] = []
    ids: list[Any] = []
    weights: list[Any] = []
    for where, record in json_records(path):
        if record.get("type") == "meta":
            meta = record
            continue
        if need(record, "type", str, where) != "route":
            raise TraceError(f"{where}: type '{record['type'][:40]}' is neither meta nor route; is it a hook log?")
        request = requests.setdefault(str(record.get("req_id")), len(requests))
        keys.append((request, need(record, "token_idx", int, where), need(record, "layer", int, where)))
        ids.append(need(record, "topk_ids", list, where))
        weights.append(record.get("topk_weights"))
    if not keys:
        raise TraceError("no line of type route; was anything logged?")
    present = [weight for weight in weights if weight is not None]
    rows, findings = _sequences(listed(keys, ids, present, path.name), keep=options.keep_warmup)
    recording = replace(
        gather(rows, phase="mixed", identity="requests" if len(requests) > 1 else "stream"),
        n_experts=need(meta, "num_experts", int, "meta line") if "num_experts" in meta else None,
        top_k=need(meta, "top_k", int, "meta line") if "top_k" in meta else None,
        findings=findings,
    )
    return to_trace(recording, options, "vLLM hook log")


def _sequences(rows: Rows, *, keep: bool) -> tuple[Rows, tuple[Finding, ...]]:
    """Rows without profiling runs; the n-th time that (request, token, layer) occurs belongs to its n-th sequence."""
    mask = np.zeros(len(rows.layer), dtype=np.bool_)
    for layer in np.unique(rows.layer):
        at = np.flatnonzero(rows.layer == layer)
        mask[at] = checks.warmup_mask(rows.ids[at].T)
    warmup = checks.warmup_rows(mask, keep=keep)
    if mask.all() and not keep:
        raise TraceError("every row is a profiling row; was a request sent?")
    if not keep:
        rows = _selected(rows, ~mask)
    table = np.stack([rows.sequence, rows.token, rows.layer])
    order = np.lexsort((np.arange(table.shape[1]), *table))
    starts = np.flatnonzero(np.append(True, (table[:, order[1:]] != table[:, order[:-1]]).any(axis=0)))
    occurrence = np.empty(len(order), dtype=np.int64)
    occurrence[order] = counting(np.diff(np.append(starts, len(order))))
    n_restarts = int(occurrence.max())
    message = f"token_idx starts again up to {n_restarts} times inside a request" if n_restarts else "none"
    restarts = Finding(check="restarted requests", count=n_restarts, message=message)
    return replace(rows, sequence=rows.sequence * (n_restarts + 1) + occurrence), (warmup, restarts)


def _selected(rows: Rows, keep: NDArray[np.bool_]) -> Rows:
    return Rows(
        sequence=rows.sequence[keep],
        token=rows.token[keep],
        layer=rows.layer[keep],
        ids=rows.ids[keep],
        weights=None if rows.weights is None else rows.weights[keep],
    )
