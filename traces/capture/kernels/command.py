"""What `capture kernels` does: tables of all families and their provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from scenarios.files import check_folder
from traces.capture.cores import claim_core
from traces.capture.kernels.bench import bench_of
from traces.capture.kernels.grid import grid_of
from traces.capture.kernels.session import FAMILIES, measure_families
from traces.capture.provenance import PROVENANCE, cache_bytes, clocks, provenance, read_provenance, write_provenance


def capture_kernels(
    device: torch.device, folder: Path, limits: tuple[float, int], only: Sequence[str] | None = None
) -> None:
    """Measure kernels of a device into `folder`: a CSV file a family, and provenance.json, which says of each
    what it was measured on, when and how."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    scheduling = claim_core(0) if device.type == "cpu" else "one stream, one host thread"
    facts = provenance(device) | {"scheduling": scheduling, "cache_bytes": cache_bytes(device)}
    bench = bench_of(device, cache_bytes(device))
    found = measure_families(bench, grid_of(device.type), list(only or FAMILIES), folder, limits)
    for one in found:
        tail = "" if one.complete else ", cut off by the time limit"
        tail += f", {len(one.failed)} failed (see {PROVENANCE})" if one.failed else ""
        print(f"{folder / one.family}.csv: {one.rows} rows, {one.disturbed} disturbed by other programs{tail}")
    facts |= {"clocks_after": clocks(device)}
    earlier = read_provenance(folder / PROVENANCE)
    write_provenance(earlier | {one.family: facts | asdict(one) for one in found}, folder / PROVENANCE)
