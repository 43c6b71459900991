"""Dense products: a linear layer, as the decoder has them, over tokens, shapes and data types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch.nn import functional

from traces.capture.kernels.bench import DTYPES, LONG_NAMES, Bench, Case, Row, timed

Sizes = tuple[int, int]
"""(n, k) of a product."""


def cases(bench: Bench, shapes: Sequence[Sizes], tokens: Sequence[int], dtypes: Sequence[str]) -> Iterator[Case]:
    """Products [m, k] x [k, n] of all shapes (n, k), tokens m and data types, weights not in the cache."""
    for dtype in dtypes:
        for m in tokens:
            for sizes in shapes:
                yield _case(bench, m, sizes, dtype)


def repeated_cases(bench: Bench, shapes: Sequence[Sizes], tokens: Sequence[int], dtype: str) -> Iterator[Case]:
    """The same with weights that every call finds in the cache."""
    for m in tokens:
        for sizes in shapes:
            yield _case(bench, m, sizes, dtype, repeated=True)


def _case(bench: Bench, m: int, sizes: Sizes, dtype: str, *, repeated: bool = False) -> Case:
    n, k = sizes
    weights = "repeated" if repeated else "rotating"
    shape = {
        "gemm_dtype": LONG_NAMES[dtype],
        "m": m,
        "n": n,
        "k": k,
        "kernel_source": "torch_linear",
        "weights": weights,
    }
    return Case(shape=shape, measure=partial(_measure, bench, m, sizes, dtype, repeated))


def _measure(bench: Bench, m: int, sizes: Sizes, dtype: str, repeated: bool) -> Row:
    n, k = sizes
    copies = 1 if repeated else bench.copies_of(n * k * DTYPES[dtype].itemsize)
    weights = [bench.randn(n, k, dtype=dtype) for _ in range(copies)]
    x = bench.randn(m, k, dtype=dtype)
    return timed(bench.time(lambda turn: functional.linear(x, weights[turn % copies]), graph=True))
