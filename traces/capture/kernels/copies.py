"""Copies of expert weights between host and device, by size, kind of host memory and streams; alone and under work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from traces.capture.clock import Work
from traces.capture.kernels.bench import Bench, Case, Row, timed
from traces.capture.kernels.beside import beside

READ_BYTES = 1 << 28
GEMM = 1024  # m, n and k of the product that runs beside


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One copy: `to-device` or `to-host`, host memory `pinned` or `pageable`, in parts on several streams."""

    direction: str
    host_memory: str
    bytes: int
    streams: int = 1
    under: str = "none"


def copies_of(device: torch.device, sizes: Sequence[int]) -> list[Copy]:
    """What is measured on a device; a CPU has one kind of memory, and one stream."""
    every = []
    for size in sizes:
        if device.type == "cpu":
            every += [Copy(direction="to-device", host_memory="pageable", bytes=size, under=u) for u in UNDER]
            continue
        for direction in ("to-device", "to-host"):
            every += [Copy(direction=direction, host_memory="pinned", bytes=size, under=under) for under in UNDER]
            every.append(Copy(direction=direction, host_memory="pageable", bytes=size))
            for streams in (2, 4):
                every.append(Copy(direction=direction, host_memory="pinned", bytes=size, streams=streams))
    return every


UNDER = ("none", "gemm")


def cases(bench: Bench, copies: Sequence[Copy]) -> Iterator[Case]:
    """Reading the memory of the device, and all copies."""
    read = {"direction": "read", "host_memory": "none", "bytes": READ_BYTES, "streams": 1, "under": "none"}
    yield Case(shape=dict(read), measure=partial(_measure_read, bench))
    for copy in copies:
        yield Case(shape=asdict(copy), measure=partial(_measure, bench, copy))


def _measure(bench: Bench, copy: Copy) -> Row:
    """One copy between buffers that rotate."""
    pairs = _buffers(bench, copy)
    work = None
    if copy.under == "gemm":
        a = bench.randn(GEMM, GEMM, dtype="fp32" if bench.device.type == "cpu" else "bf16")
        work = partial(torch.matmul, a, a)
    with beside(work, bench.device):
        return timed(bench.time(_copier(bench, copy, pairs)))


def _measure_read(bench: Bench) -> Row:
    """Reading the device's own memory: the sum of a buffer that no cache holds."""
    data = torch.ones(READ_BYTES // 4, device=bench.device)
    return timed(bench.time(lambda _turn: data.sum()))


def _buffers(bench: Bench, copy: Copy) -> list[tuple[Tensor, Tensor]]:
    """(source, target) of every turn."""
    number = bench.copies_of(2 * copy.bytes)
    pin = copy.host_memory == "pinned"
    pairs = []
    for _ in range(number):
        host = torch.zeros(copy.bytes // 4, pin_memory=pin)
        there = torch.zeros(copy.bytes // 4, device=bench.device)
        pairs.append((host, there) if copy.direction == "to-device" else (there, host))
    return pairs


def _copier(bench: Bench, copy: Copy, pairs: list[tuple[Tensor, Tensor]]) -> Work:
    if copy.streams == 1:

        def once(turn: int) -> None:
            source, target = pairs[turn % len(pairs)]
            target.copy_(source, non_blocking=True)

        return once
    streams = [torch.cuda.Stream(bench.device) for _ in range(copy.streams)]

    def in_parts(turn: int) -> None:
        source, target = pairs[turn % len(pairs)]
        current = torch.cuda.current_stream(bench.device)
        parts = zip(streams, source.chunk(copy.streams), target.chunk(copy.streams), strict=True)
        for stream, one, other in parts:
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                other.copy_(one, non_blocking=True)
        for stream in streams:
            current.wait_stream(stream)

    return in_parts
