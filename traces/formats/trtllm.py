"""TensorRT-LLM expert statistics (EXPERT_STATISTIC_PATH): meta_info.json and one safetensors file per rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.errors import TraceError
from traces.counts import ExpertCounts
from traces.formats.files import need, read_json, whole_numbers
from traces.formats.gather import MAX_EMPTY_SHARE, checked_ids, counting
from traces.formats.repair import to_counts, to_trace
from traces.formats.tensors import read_safetensors
from traces.recording import Finding, ImportOptions, Recording
from traces.routing import RoutingTrace

Cells = dict[tuple[int, int], NDArray[Any]]


def import_statistics(path: Path, options: ImportOptions) -> ExpertCounts:
    """Counts per iteration and layer from rank{r}.safetensors, keys "{iteration}_{layer}", summed over the ranks."""
    n_experts, _ = _meta(path)
    totals: Cells = {}
    for cells in _ranks(path, r"rank[0-9]+\.safetensors"):
        for key, values in cells.items():
            counts = whole_numbers(values, f"key {key[0]}_{key[1]}", ndim=1).astype(np.int64)
            if len(counts) != n_experts:
                raise TraceError(f"key {key[0]}_{key[1]}: {len(counts)} counts for {n_experts} experts; record again")
            totals[key] = totals.get(key, np.zeros(n_experts, dtype=np.int64)) + counts
    layers = sorted({layer for _, layer in totals})
    whole = [it for it in sorted({it for it, _ in totals}) if all((it, layer) in totals for layer in layers)]
    n_partial = len({it for it, _ in totals}) - len(whole)
    if not whole:
        raise TraceError(f"none of the {n_partial} iterations holds all {len(layers)} layers; record again")
    counts = np.stack([[totals[it, layer] for layer in layers] for it in whole])
    message = f"{n_partial} iterations lack layers and were left out" if n_partial else "none"
    partial = Finding(check="partial iterations", count=n_partial, message=message, changed=n_partial > 0)
    return to_counts(counts, tuple(layers), "step", options, "TensorRT-LLM expert statistics", (partial,))


def import_raw(path: Path, options: ImportOptions) -> RoutingTrace:
    """Trace from rank{r}_raw.safetensors: "{iteration}_{layer}" -> experts [token, k]; an iteration is a sequence."""
    n_experts, top_k = _meta(path)
    ranks = _ranks(path, r"rank[0-9]+_raw\.safetensors")
    layers = sorted({layer for cells in ranks for _, layer in cells})
    iterations = sorted({it for cells in ranks for it, _ in cells})
    if len(layers) * len(iterations) * len(ranks) > MAX_EMPTY_SHARE * sum(len(cells) for cells in ranks):
        raise TraceError("most iterations lack most layers; the keys are damaged, record again")
    blocks, lengths = [], []
    for it in iterations:
        parts = [_block(cells, it, layers) for cells in ranks]
        blocks += [part for part in parts if part.size]
        lengths.append(sum(part.shape[2] for part in parts))
    widths = {block.shape[1] for block in blocks}
    if len(widths) != 1:
        raise TraceError(f"tokens have {sorted(widths) or 'no'} experts each; record again with one model")
    size = np.array(lengths, dtype=np.int64)
    recording = Recording(
        ids=np.concatenate(blocks, axis=2),
        offsets=np.concatenate(([0], np.cumsum(size[size > 0]))),
        positions=counting(size),
        layers=tuple(layers),
        phase="mixed",
        identity="steps",
        n_experts=n_experts,
        top_k=top_k,
    )
    return to_trace(recording, options, "TensorRT-LLM expert statistics, raw")


def _block(cells: Cells, iteration: int, layers: list[int]) -> NDArray[np.int16]:
    """Ids [layer, k, token] of one rank and iteration; layers without an entry hold -1."""
    found = {layer: whole_numbers(cells[iteration, layer], f"key {iteration}_{layer}", ndim=2) for layer in layers
             if (iteration, layer) in cells}  # fmt: skip
    shapes = {ids.shape for ids in found.values()}
    if not shapes:
        return np.empty((len(layers), 0, 0), dtype=np.int16)
    if len(shapes) != 1:
        raise TraceError(f"iteration {iteration}: layers differ in tokens or k {sorted(shapes)[:4]}; record again")
    n_tokens, width = shapes.pop()
    block = np.full((len(layers), width, n_tokens), -1, dtype=np.int16)
    for row, layer in enumerate(layers):
        if layer in found:
            block[row] = checked_ids(found[layer], f"key {iteration}_{layer}").T
    return block


def _meta(path: Path) -> tuple[int, int]:
    meta = read_json(path / "meta_info.json")
    if not isinstance(meta, dict):
        raise TraceError("meta_info.json: expected an object; record again")
    return need(meta, "num_experts", int, "meta_info.json"), need(meta, "num_experts_per_token", int, "meta_info.json")


def _ranks(path: Path, pattern: str) -> list[Cells]:
    """Arrays of each rank's file by (iteration, layer)."""
    files = sorted(file for file in path.iterdir() if re.fullmatch(pattern, file.name))
    ranks = []
    for file in files:
        cells: Cells = {}
        for name, values in read_safetensors(file).items():
            match = re.fullmatch(r"([0-9]{1,12})_([0-9]{1,6})", name)
            if match is None:
                raise TraceError(f"{file.name}: key '{name[:40]}' is not ITERATION_LAYER; is it an expert statistic?")
            cells[int(match[1]), int(match[2])] = values
        ranks.append(cells)
    if not any(ranks):
        raise TraceError(f"no counts in files {pattern}; a run shorter than EXPERT_STATISTIC_ITER_RANGE writes nothing")
    return ranks
