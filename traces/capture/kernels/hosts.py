"""Experts on the cores of the host, by tokens and threads, alone and beside a copy to the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from traces.capture.clock import HostClock, measure
from traces.capture.cores import n_cores
from traces.capture.experts import expert
from traces.capture.kernels.bench import Bench, Case, Row, timed
from traces.capture.kernels.beside import beside
from traces.capture.kernels.experts import Layer, stack_of

COPY_BYTES = 16 << 20
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def threads_of(device: torch.device) -> list[int]:
    """Numbers of threads that are tried: 1, 2, 4 ... up to all cores; one where the CPU itself is the device."""
    if device.type == "cpu":
        return [1]
    return [1 << n for n in range(n_cores().bit_length())]


def cases(bench: Bench, layers: Sequence[Layer]) -> Iterator[Case]:
    """All layers, threads and tokens, alone and under a copy."""
    host = Bench(device=torch.device("cpu"), cache_bytes=256 << 20, clock=HostClock(), limits=bench.limits)
    for layer in layers:
        stack = stack_of(host, layer, "fp32")
        for threads in threads_of(bench.device):
            for n_tokens in TOKENS:
                for under in ("none", "copy"):
                    rows = host.randn(n_tokens, layer.hidden)

                    def work(turn: int, rows: torch.Tensor = rows) -> torch.Tensor:
                        number = turn % (layer.n_experts * len(stack.copies))  # noqa: B023  used before the next layer
                        return expert(rows, stack.copies[number // layer.n_experts], number % layer.n_experts)  # noqa: B023

                    shape = {
                        "dtype": "float32", "tokens": n_tokens, "hidden_size": layer.hidden,
                        "inter_size": layer.intermediate, "threads": threads, "under": under,
                    }  # fmt: skip
                    yield Case(shape=shape, measure=partial(_time, bench, shape, work))


def _time(bench: Bench, shape: Row, work: object) -> Row:
    """One point; the copy goes to the device, from pinned memory where there is a GPU."""
    host = torch.zeros(COPY_BYTES // 4, pin_memory=bench.device.type == "cuda")
    target = torch.zeros(COPY_BYTES // 4, device=bench.device)
    other = partial(target.copy_, host, non_blocking=True) if shape["under"] == "copy" else None
    before = torch.get_num_threads()
    torch.set_num_threads(int(str(shape["threads"])))
    try:
        with torch.inference_mode(), beside(other, bench.device):
            timing = measure(work, HostClock(), bench.limits)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    return timed(timing)
