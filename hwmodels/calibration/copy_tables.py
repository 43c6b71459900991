"""Figures of host copies by block size as fitting problems, one a direction and method."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwmodels.calibration.fit import Constants, Rows, Times
from hwmodels.calibration.link_problem import LinkProblem, meant, numbers_of, start
from hwmodels.copies import CopyLaw, block_s
from hwmodels.fitted import Band
from hwmodels.library import find_link
from hwmodels.validation.columns import Column
from scenarios.sources import Sourced

LINK = "pcie-5"
DIRECTIONS = {"H2D": "to-device", "D2H": "to-host"}
METHODS = {"DMA": "copy-engine", "kernel": "copy-kernel"}
READING_ERROR = 0.3e9  # bytes/s, of figures read off a plot
UNREADABLE = 0.05  # leave out where the reading error exceeds this share
PAGEABLE = CopyLaw(
    direction="to-device",
    method="copy-engine",
    host_memory="pageable",
    block_latency_s=1e-5,
    bandwidth_frac=0.2,
    source="copied into pinned buffers by one CPU thread first; no table, a guess",
    kind="assumed",
    band=Band(low=0.5, high=2.0, source="a guess"),
)
BOTH_WAYS = Sourced[float](
    value=0.9,
    source="requests of one direction share the wire with data of the other; no table, a guess",
    kind="assumed",
)
BLURRED = "rate below 6 GB/s, read off a plot to 0.3 GB/s: uncertain by more than 5 %"


def copy_problems(columns: dict[str, Column]) -> list[LinkProblem]:
    """Time of a block by its size, pinned memory; rows that the plot cannot resolve are left out."""
    direction, method = columns["direction"].astype(np.str_), columns["method"].astype(np.str_)
    size = columns["block_KB"].astype(np.float64) * 1024
    rate = columns["GB_per_s_digitised"].astype(np.float64) * 1e9
    readable = rate * UNREADABLE >= READING_ERROR
    problems = []
    for name, how in sorted(set(zip(direction.tolist(), method.tolist(), strict=True))):
        rows = (direction == name) & (method == how)
        claimed = rows & readable
        left_out = int((rows & ~readable).sum())
        what = meant(DIRECTIONS, name, "direction"), meant(METHODS, how, "method")
        problems.append(_problem(*what, size[claimed], (size / rate)[claimed], left_out))
    return problems


def _problem(direction: str, method: str, size: Times, measured_s: Times, left_out: int) -> LinkProblem:
    link_bytes_per_s = find_link(LINK).bytes_per_s.value

    def make(constants: Constants) -> CopyLaw:
        known = {"direction": direction, "method": method, "source": "a fit under way", "kind": "measured"}
        return CopyLaw.model_validate({**known, **constants})

    def time_s(law: Any, rows: Rows) -> Times:
        return block_s(size[rows], law, link_bytes_per_s)

    parameters = start(block_latency_s=(1e-6, 1e-9, 1e-4), bandwidth_frac=(0.75, 0.05, 1.0))
    if method == "copy-kernel":
        parameters += start(least_block_s=(3e-7, 1e-9, 1e-4))
    return LinkProblem(
        kind="copies",
        link=LINK,
        subject="",
        part=f"{direction} {method}",
        measured_s=measured_s,
        shapes=numbers_of(size.tolist()),
        starts=(parameters,),
        make=make,
        time_s=time_s,
        link_bytes_per_s=link_bytes_per_s,
        left_out={BLURRED: left_out} if left_out else {},
    )
