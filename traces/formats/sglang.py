"""SGLang: expert distribution recorder (`stat`, `per_pass`, `per_token`) and per-request routed experts.

The recorder writes `torch.save` files; its per_pass and per_token ids are slots, mapped here to logical experts by the
map that was last in force. Layout: python/sglang/srt/eplb/expert_distribution.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.counts import ExpertCounts
from traces.formats.files import data_files, decode_base64, json_records, need, whole_numbers
from traces.formats.gather import checked_ids, counting, joined
from traces.formats.repair import checked_map, logical_ids, read_map, to_counts, to_trace
from traces.formats.tensors import read_torch, torch_array
from traces.recording import Finding, ImportOptions, RawIds, Recording
from traces.routing import Phase, RoutingTrace

Block = tuple[RawIds, NDArray[np.int64]]  # logical ids [token, layer, k] and positions of one rank and forward pass
_EXTEND, _DECODE = 1, 2  # ForwardMode of sglang.srt.model_executor.forward_batch_info


def import_stat(path: Path, options: ImportOptions) -> ExpertCounts:
    """Counts of a `stat` dump: logical_count [buffered step, hidden layer, expert]."""
    content = read_torch(path)
    if not isinstance(content, dict) or "logical_count" not in content:
        raise TraceError("no 'logical_count' inside; is it a dump of recorder mode stat?")
    counts = torch_array(content["logical_count"], "logical_count", ndim=3, file_bytes=path.stat().st_size)
    message = "a finite buffer wraps: steps may be out of order, only sums over them are valid"
    order = Finding(check="circular buffer", count=len(counts), message=message)
    layers = tuple(range(counts.shape[1]))
    return to_counts(counts, layers, "step", options, "SGLang expert distribution recorder, stat", (order,))


def import_per_pass(path: Path, options: ImportOptions) -> ExpertCounts:
    """Counts of `per_pass` dumps (one file per rank): global_physical_count [hidden layer, slot], summed over ranks."""
    dumps = _dumps(path)
    slots, finding = _slot_map(dumps, options)
    passes: dict[int, NDArray[np.int64]] = {}
    for where, record, n_bytes in _records(dumps):
        counts = torch_array(record.get("global_physical_count"), where, ndim=2, file_bytes=n_bytes)
        if counts.shape != slots.shape or counts.size == 0 or int(counts.min()) < 0:
            raise TraceError(f"{where}: counts {counts.shape} do not fit the map {slots.shape}, or are negative")
        total = passes.setdefault(need(record, "forward_pass_id", int, where), np.zeros(slots.shape, dtype=np.int64))
        total += counts.astype(np.int64)
    if not passes:
        raise TraceError("no forward pass was recorded; start the recording before sending requests")
    physical = np.stack([passes[key] for key in sorted(passes)])
    logical = np.zeros((*physical.shape[:2], int(slots.max()) + 1), dtype=np.int64)
    for layer, experts in enumerate(slots):
        holds = experts[:, None] == np.arange(logical.shape[2])
        logical[:, layer] = physical[:, layer] @ holds.astype(np.int64)
    source = "SGLang expert distribution recorder, per_pass"
    return to_counts(logical, tuple(range(len(slots))), "step", options, source, (finding,))


def import_per_token(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of `per_token` dumps: topk_ids_of_layer [hidden layer, token, 8]; a forward pass is a sequence."""
    dumps = _dumps(path)
    slots, finding = _slot_map(dumps, options)
    passes: dict[int, list[Block]] = {}
    modes: set[int] = set()
    seen: list[list[tuple[int, Block]]] = []
    repeated = 0
    for dump in dumps:
        blocks = [(need(r, "forward_pass_id", int, at), _block(r, slots, at, n)) for at, r, n in _records([dump])]
        if any(_same(blocks, other) for other in seen):
            repeated += 1
            continue
        seen.append(blocks)
        modes |= {need(r, "forward_mode", int, at) for at, r, _ in _records([dump])}
        for key, block in blocks:
            passes.setdefault(key, []).append(block)
    ordered = [block for key in sorted(passes) for block in passes[key]]
    ids, _ = joined([block[0] for block in ordered], "topk_ids_of_layer")
    lengths = np.array([sum(len(at) for _, at in passes[key]) for key in sorted(passes)], dtype=np.int64)
    message = f"{repeated} ranks recorded what another did (tensor-parallel attention) and were left out"
    recording = Recording(
        ids=ids,
        offsets=np.concatenate(([0], np.cumsum(lengths[lengths > 0]))),
        positions=np.concatenate([block[1] for block in ordered]),
        layers=tuple(range(len(slots))),
        phase=_phase(modes),
        identity="steps",
        n_experts=int(slots.max()) + 1,
        findings=(
            finding,
            Finding(
                check="repeated ranks", count=repeated, message=message if repeated else "none", changed=repeated > 0
            ),
        ),
    )
    return to_trace(
        recording, replace(options, physical_to_logical=None), "SGLang expert distribution recorder, per_token"
    )


def import_routed_experts(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace of responses with `routed_experts`: base64 of raw int32 [token, hidden layer, k], without a header.

    Reads meta_info.routed_experts of /generate and choices[].sgl_ext.routed_experts of the OpenAI endpoints. Needs
    `options.n_layers` (hidden layers) and `options.top_k`, and checks the token counts of the response where given.
    """
    if options.n_layers is None or options.top_k is None or min(options.n_layers, options.top_k) < 1:
        raise TraceError("routed_experts has no header; give --layers (hidden layers) and --top-k of the model")
    blocks: list[RawIds] = []
    positions: list[NDArray[np.int64]] = []
    for where, record in json_records(path):
        for text, n_tokens in _routed(record, where):
            raw = decode_base64(text, where)
            row_bytes = 4 * options.n_layers * options.top_k
            if len(raw) % row_bytes or not raw:
                raise TraceError(f"{where}: {len(raw)} bytes do not divide into rows of {row_bytes} (layers x k x 4)")
            block = np.frombuffer(raw, dtype="<i4").reshape(-1, options.n_layers, options.top_k)
            first = 0 if n_tokens is None else n_tokens - 1 - len(block)
            if first < 0:
                raise TraceError(
                    f"{where}: {len(block)} routed tokens, but the response has {n_tokens}; check --layers"
                )
            blocks.append(checked_ids(block, where))
            positions.append(first + np.arange(len(block), dtype=np.int64))
    ids, offsets = joined(blocks, path.name)
    recording = Recording(
        ids=ids,
        offsets=offsets,
        positions=np.concatenate(positions),
        layers=tuple(range(options.n_layers)),
        phase="mixed",
        identity="requests",
        top_k=options.top_k,
    )
    return to_trace(recording, options, "SGLang routed_experts")


def _routed(record: dict[str, Any], where: str) -> Iterator[tuple[str, int | None]]:
    """(base64 text, tokens of prompt and answer or None) of each answer of a response."""
    if "choices" in record:
        usage = record.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        choices = need(record, "choices", list, where)
        for choice in choices:
            extension = need(choice, "sgl_ext", dict, where) if isinstance(choice, dict) else {}
            yield need(extension, "routed_experts", str, where), _count(total if len(choices) == 1 else None, where)
        return
    meta = need(record, "meta_info", dict, where)
    prompt, answer = meta.get("prompt_tokens"), meta.get("completion_tokens")
    known = prompt is not None and answer is not None
    total = need(meta, "prompt_tokens", int, where) + need(meta, "completion_tokens", int, where) if known else None
    yield need(meta, "routed_experts", str, where), _count(total, where)


def _count(total: Any, where: str) -> int | None:
    if total is None or (type(total) is int and 0 < total < 1 << 31):
        return total
    raise TraceError(f"{where}: {total!r} is no token count; export the file again")


def _dumps(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    dumps = [(file, read_torch(file)) for file in data_files(path, "*.pt")]
    for file, content in dumps:
        if not isinstance(content, dict) or not isinstance(content.get("records"), list):
            raise TraceError(f"{file.name}: no list 'records' inside; is it a dump of per_pass or per_token?")
    return dumps


def _records(dumps: list[tuple[Path, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(place, record, bytes of the file) of every rank's file in turn."""
    for file, content in dumps:
        n_bytes = file.stat().st_size
        for r, record in enumerate(content["records"]):
            where = f"{file.name} record {r}"
            if not isinstance(record, dict):
                raise TraceError(f"{where}: expected a dictionary; dump the recording again")
            yield where, record, n_bytes


def _slot_map(dumps: list[tuple[Path, dict[str, Any]]], options: ImportOptions) -> tuple[NDArray[np.int16], Finding]:
    if options.physical_to_logical is not None:
        slots = read_map(options.physical_to_logical)
        message = f"slots were mapped to experts by {options.physical_to_logical.name}"
        return slots, Finding(check="slot map", count=slots.shape[1], message=message, changed=True)
    maps = []
    for file, content in dumps:
        value = content.get("last_physical_to_logical_map")
        if value is None:
            raise TraceError(f"{file.name}: no 'last_physical_to_logical_map'; give --physical-to-logical FILE")
        maps.append(checked_map(torch_array(value, file.name, ndim=2, file_bytes=file.stat().st_size), file.name))
    if any(not np.array_equal(maps[0], other) for other in maps[1:]):
        raise TraceError("the ranks hold different slot maps; import files of one dump only")
    message = (
        "slots were mapped to experts by the last map; with online rebalancing earlier steps may have used another"
    )
    return maps[0], Finding(check="slot map", count=maps[0].shape[1], message=message, changed=True)


def _block(record: dict[str, Any], slots: NDArray[np.int16], where: str, n_bytes: int) -> Block:
    """Logical ids [token, layer, k] and positions [token] of one rank and pass."""
    physical = torch_array(record.get("topk_ids_of_layer"), where, ndim=3, file_bytes=n_bytes)
    if len(physical) != len(slots):
        raise TraceError(f"{where}: {len(physical)} layers, but the slot map has {len(slots)}; is it another run's?")
    physical = checked_ids(physical, where)
    ids = np.stack([logical_ids(rows, slots, layer) for layer, rows in enumerate(physical)])
    positions = record.get("positions")
    n_tokens = ids.shape[1]
    at = counting(np.array([n_tokens])) if positions is None else whole_numbers(positions, where, ndim=1)
    if len(at) != n_tokens:
        raise TraceError(f"{where}: {len(at)} positions for {n_tokens} tokens; dump the recording again")
    return ids.transpose(1, 0, 2), at.astype(np.int64)


def _same(left: list[tuple[int, Block]], right: list[tuple[int, Block]]) -> bool:
    """Whether two ranks recorded the same passes with the same tokens."""
    return [key for key, _ in left] == [key for key, _ in right] and all(
        np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for (_, a), (_, b) in zip(left, right, strict=True)
    )


def _phase(modes: set[int]) -> Phase:
    if modes == {_DECODE}:
        return "decode"
    return "prefill" if modes == {_EXTEND} else "mixed"
