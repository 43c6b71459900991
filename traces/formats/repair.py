"""From a `Recording` to a checked trace: every step that alters data returns the finding that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces import checks
from traces.counts import ExpertCounts
from traces.formats.files import read_json, read_npy, whole_numbers
from traces.recording import MAX_EXPERTS, Finding, ImportOptions, RawIds, Recording
from traces.routing import Provenance, RoutingTrace, id_dtype


def to_trace(recording: Recording, options: ImportOptions, source: str) -> RoutingTrace:
    """Trace of a recording: slots mapped, dense layers, padding, warm-up and truncated tokens left out, rows ordered.

    Raises TraceError where a check is fatal or the number of experts is unknown.
    """
    recording, n_experts, mapped = to_logical(recording, options)
    recording, dense = drop_dense_layers(recording, options.moe_layers)
    recording, padding = drop_padding(recording)
    recording, warmup = drop_warmup(recording, keep=options.keep_warmup)
    recording, truncated = drop_truncated(recording)
    recording, reordered = deinterleave(recording, options.deinterleave or 1, options.sequence_tokens)
    checked = checks.run_checks(recording, n_experts, in_order=options.deinterleave is not None)
    findings = [*recording.findings, mapped, dense, padding, warmup, truncated, reordered, *checked]
    checks.refuse(findings)
    unsorted = any(finding.check == "unsorted ids" and finding.count for finding in findings)
    padded = bool((recording.ids < 0).any()) if recording.ids.dtype.kind == "i" else False
    return RoutingTrace(
        ids=_final_ids(recording.ids, n_experts, padded),
        n_experts=n_experts,
        offsets=recording.offsets,
        positions=_positions(recording.positions),
        moe_layers=recording.layers or (),
        phase=recording.phase,
        provenance=provenance(options, source, findings),
        weights=recording.weights,
        labels=recording.labels,
        weight_ordered=not unsorted and (recording.ordered or recording.weights is not None),
        variable_k=padded,
    )


def provenance(options: ImportOptions, source: str, findings: list[Finding]) -> Provenance:
    """Origin of an imported trace, with one note for each finding."""
    notes = tuple(finding.note() for finding in findings)
    return Provenance(
        model=options.model, source=options.source or source, kind="captured", licence=options.licence, notes=notes
    )


def to_counts(
    counts: NDArray[np.integer[Any]],
    layers: tuple[int, ...] | None,
    axis: str,
    options: ImportOptions,
    source: str,
    findings: tuple[Finding, ...] = (),
) -> ExpertCounts:
    """Counts [step, layer, expert] without layers that never count anything and without steps that are all zero."""
    if int(counts.min(initial=0)) < 0:
        raise TraceError(f"a count is negative ({int(counts.min())}); record again")
    rows, numbers, dropped = _chosen_layers((counts == 0).all(axis=(0, 2)), layers, options.moe_layers)
    counts = counts[:, rows]
    idle = checks.idle_steps(counts.astype(np.int64))
    counts = counts[counts.any(axis=(1, 2))]
    n_experts = _agreed_experts(counts.shape[2], options.n_experts)
    return ExpertCounts(
        counts=np.ascontiguousarray(counts, dtype=np.int64),
        n_experts=n_experts,
        moe_layers=numbers,
        axis="step" if axis == "step" else "sequence",
        provenance=provenance(options, source, [*findings, dropped, idle]),
    )


def to_logical(recording: Recording, options: ImportOptions) -> tuple[Recording, int, Finding]:
    """The recording with slot numbers replaced by experts, where a map is given, and the number of experts."""
    if options.physical_to_logical is None:
        finding = Finding(check="slot map", count=0, message="none given: ids are taken as logical experts")
        return recording, _agreed_experts(recording.n_experts, options.n_experts), finding
    slots = read_map(options.physical_to_logical)
    rows = recording.layers or tuple(range(len(recording.ids)))
    ids = np.stack([logical_ids(ids, slots, row) for ids, row in zip(recording.ids, rows, strict=True)])
    message = (
        f"{slots.shape[1]} slots were mapped to {int(slots.max()) + 1} experts by {options.physical_to_logical.name}"
    )
    finding = Finding(check="slot map", count=slots.shape[1], message=message, changed=True)
    return replace(recording, ids=ids), _agreed_experts(int(slots.max()) + 1, options.n_experts), finding


def read_map(path: Path) -> NDArray[np.int16]:
    """Expert of each slot, int16 [layer, slot], from .npy or JSON (bare, or under `physical_to_logical_map`)."""
    if not path.is_file():
        raise TraceError(f"{path}: no such map file; give a JSON or .npy file [layer][slot]")
    content = read_npy(path) if path.suffix == ".npy" else read_json(path)
    if isinstance(content, dict):
        content = content.get("physical_to_logical_map")
    return checked_map(whole_numbers(content, path.name, ndim=2), path.name)


def checked_map(slots: NDArray[np.integer[Any]], where: str) -> NDArray[np.int16]:
    """`slots` as int16 [layer, slot].

    Raises TraceError where it is empty, an entry is no expert number, or an expert has no slot in some layer.
    """
    if slots.size == 0 or int(slots.min()) < 0 or int(slots.max()) >= MAX_EXPERTS:
        raise TraceError(f"{where}: the slot map must hold experts 0..{MAX_EXPERTS - 1}; dump it again")
    n_experts = int(slots.max()) + 1
    for layer, row in enumerate(slots):
        missing = n_experts - len(np.unique(row))
        if missing:
            raise TraceError(f"{where}: {missing} of {n_experts} experts have no slot in layer {layer} of the slot map")
    return slots.astype(np.int16)


def logical_ids(ids: RawIds, slots: NDArray[np.int16], layer: int) -> RawIds:
    """Experts of slot numbers `ids` by row `layer` of the map; -1 stays."""
    if not 0 <= layer < len(slots):
        raise TraceError(
            f"the slot map has {len(slots)} layers, but the recording has layer {layer}; give the full map"
        )
    if int(ids.max(initial=-1)) >= slots.shape[1]:
        raise TraceError(
            f"slot {int(ids.max())} is beyond the {slots.shape[1]} slots of the map; it is another run's map"
        )
    return np.where(ids < 0, np.int16(-1), slots[layer][ids])


def drop_dense_layers(recording: Recording, moe_layers: tuple[int, ...] | None) -> tuple[Recording, Finding]:
    """Leave out layers without experts, or those the user does not name."""
    dense = checks.dense_layer_mask(recording.ids)
    rows, numbers, finding = _chosen_layers(dense, recording.layers, moe_layers)
    if len(rows) == len(recording.ids):
        return replace(recording, layers=numbers), finding
    weights = None if recording.weights is None else recording.weights[rows]
    return replace(recording, ids=recording.ids[rows], weights=weights, layers=numbers), finding


def drop_padding(recording: Recording) -> tuple[Recording, Finding]:
    """Leave out columns of the top-k that are always -1."""
    finding = checks.padded_k(recording.ids)
    if not finding.changed:
        return recording, finding
    used = ~(recording.ids < 0).all(axis=(0, 2))
    weights = None if recording.weights is None else recording.weights[:, used]
    return replace(recording, ids=recording.ids[:, used], weights=weights), finding


def drop_warmup(recording: Recording, *, keep: bool) -> tuple[Recording, Finding]:
    """Leave out long runs of identical rows, unless told to keep them."""
    mask = checks.warmup_mask(recording.ids)
    finding = checks.warmup_rows(mask, keep=keep)
    return (keep_tokens(recording, ~mask) if finding.changed else recording), finding


def drop_truncated(recording: Recording) -> tuple[Recording, Finding]:
    """Leave out tokens that lack a layer."""
    mask = checks.truncated_mask(recording.ids)
    finding = checks.truncated_tokens(mask)
    return (keep_tokens(recording, ~mask) if finding.changed else recording), finding


def keep_tokens(recording: Recording, keep: NDArray[np.bool_]) -> Recording:
    """The recording with the tokens of the mask; sequences that lose all tokens go."""
    if not keep.any():
        raise TraceError("no token is left after the checks; is the recording empty, or a warm-up only?")
    lengths = np.add.reduceat(keep, recording.offsets[:-1], dtype=np.int64)
    labels = tuple(label for label, length in zip(recording.labels, lengths, strict=False) if length)
    return replace(
        recording,
        ids=recording.ids[:, :, keep],
        weights=None if recording.weights is None else recording.weights[:, :, keep],
        positions=recording.positions[keep],
        offsets=np.concatenate(([0], np.cumsum(lengths[lengths > 0]))),
        labels=labels,
    )


def deinterleave(recording: Recording, stride: int, length: int | None) -> tuple[Recording, Finding]:
    """Undo the interleaving of micro-batches [token, sequence], and cut joined sequences every `length` tokens."""
    if stride == 1 and length is None:
        return recording, Finding(check="de-interleaving", count=0, message="rows taken in the order of the file")
    if stride < 1 or (length is not None and length < 1):
        raise TraceError(f"--deinterleave {stride} and --sequence-tokens {length} must be 1 or more")
    order: list[NDArray[np.int64]] = []
    lengths: list[int] = []
    labels: list[str] = []
    for s, (start, end) in enumerate(zip(recording.offsets[:-1], recording.offsets[1:], strict=True)):
        block = int(end - start) if length is None else stride * length
        if (end - start) % block or block % stride:
            raise TraceError(
                f"sequence {s} has {end - start} rows, which do not divide into blocks of {block} rows with {stride} "
                "sequences; correct --deinterleave or --sequence-tokens"
            )
        blocks = np.arange(start, end).reshape(-1, block // stride, stride).transpose(0, 2, 1)
        order.append(blocks.reshape(-1))
        lengths += [block // stride] * (len(blocks) * stride)
        labels += [recording.labels[s]] * (len(blocks) * stride) if recording.labels else []
    index, size = np.concatenate(order), np.array(lengths, dtype=np.int64)
    message = f"rows were reordered with stride {stride} into {len(size)} sequences"
    changed = replace(
        recording,
        ids=recording.ids[:, :, index],
        weights=None if recording.weights is None else recording.weights[:, :, index],
        positions=np.arange(len(index)) - np.repeat(np.cumsum(size) - size, size),
        offsets=np.concatenate(([0], np.cumsum(size))),
        labels=tuple(labels),
    )
    return changed, Finding(check="de-interleaving", count=len(size), message=message, changed=True)


def _chosen_layers(
    dense: NDArray[np.bool_], layers: tuple[int, ...] | None, wanted: tuple[int, ...] | None
) -> tuple[NDArray[np.int64], tuple[int, ...], Finding]:
    """Rows to keep, their layer numbers, and the finding about the others."""
    filled = np.flatnonzero(~dense)
    if len(filled) == 0:
        raise TraceError("no layer holds routing; is it the right format and run?")
    numbers = np.array(layers if layers is not None else range(len(dense)), dtype=np.int64)
    if wanted is None:
        rows = filled
    elif layers is None:
        if len(wanted) != len(filled):
            raise TraceError(f"--moe-layers names {len(wanted)} layers, but the file holds {len(filled)}")
        rows, numbers = filled, np.full(len(dense), -1, dtype=np.int64)
        numbers[filled] = wanted
    else:
        rows = np.flatnonzero(np.isin(numbers, wanted))
        absent = sorted(set(wanted) - set(numbers[filled].tolist()))
        if absent:
            raise TraceError(f"--moe-layers names layer {absent[0]}, which holds no routing in this file")
    others = np.setdiff1d(np.arange(len(dense)), rows)
    dropped = tuple(int(n) for n in (others if layers is None else numbers[others]))
    finding = checks.dense_layers(dropped, len(dense))
    if layers is None and wanted is None:
        finding = replace(finding, message=f"{finding.message}; the file states no layer numbers, they count from 0")
    return rows, tuple(int(n) for n in numbers[rows]), finding


def _agreed_experts(stated: int | None, given: int | None) -> int:
    if stated is not None and given is not None and stated != given:
        raise TraceError(f"--experts says {given}, but the file holds {stated} experts")
    n_experts = stated if stated is not None else given
    if n_experts is None:
        raise TraceError("the format does not state the number of experts; give --experts N")
    if not 1 <= n_experts <= MAX_EXPERTS:
        raise TraceError(f"{n_experts} experts are outside 1..{MAX_EXPERTS}")
    return n_experts


def _final_ids(ids: RawIds, n_experts: int, padded: bool) -> NDArray[Any]:
    dtype = id_dtype(n_experts, variable_k=padded)
    final = ids.astype(dtype, copy=False)
    return np.ascontiguousarray(np.where(ids < 0, np.iinfo(dtype).max, final).astype(dtype) if padded else final)


def _positions(positions: NDArray[np.int64]) -> NDArray[np.int32]:
    if int(positions.min()) < 0 or int(positions.max()) > np.iinfo(np.int32).max:
        raise TraceError(f"token positions run from {int(positions.min())} to {int(positions.max())}; export again")
    return positions.astype(np.int32)
