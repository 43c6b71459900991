"""A kernel that holds a number of multiprocessors of a GPU with arithmetic in registers; importing it needs Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

WARPS = 32
VALUES = WARPS * 32 * 32  # of a block: 1024 threads with 32 values each leave no registers for a block of a GEMM
STEPS = 20_000  # about 3 ms at 1.7 GHz: 1024 threads x 32 values on 128 lanes take 256 cycles a step


@triton.jit  # type: ignore[untyped-decorator]
def spin(data, steps, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Steps of a multiply-add on SIZE values a block, kept in registers."""
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    values = tl.load(data + places)
    for _ in range(steps):
        values = values * 0.999 + 0.001
    tl.store(data + places, values)


def spinner(sms: int, device: torch.device) -> Callable[[int], object]:
    """Work that keeps `sms` multiprocessors busy, one block on each."""
    data = torch.zeros(sms * VALUES, device=device)
    return lambda _turn: spin[(sms,)](data, STEPS, SIZE=VALUES, num_warps=WARPS)
