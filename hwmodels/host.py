"""Time of experts, GEMM and decode attention on the cores of a host.

All threads work on one expert after another. An expert costs a fixed part and a part per token, or the time that its
weights take to stream from DRAM, whichever is longer; few tokens go to a vector kernel, many to a matrix kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodels.blends import norm4
from hwmodels.cards import HostCard
from hwmodels.cores import rows_s
from hwmodels.host_constants import CpuConstants, CpuKernel
from hwmodels.library import find_cpu_kernels, find_host
from hwmodels.moe import ExpertShape
from scenarios.errors import HardwareError
from scenarios.models import BYTES_PER_VALUE, DType

Times = NDArray[np.float64]

# Peaks that may serve a matrix kernel for weights of a type, the first that a card has: other types are expanded.
MATRIX_PEAKS: dict[str, tuple[DType, ...]] = {"int8": ("int8",), "int4": ("int8", "bf16")}
HALF: tuple[DType, ...] = ("bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host card with the constants of an engine, and how that engine uses the cores.

    n_threads   threads at work, one a core; they fill NUMA nodes one after another.
    local_frac  share of the bytes that lie in the memory of the node that reads them: 1 where experts are split over
                nodes, 1 / nodes where pages are interleaved.
    """

    card: HostCard
    constants: CpuConstants
    n_threads: int
    local_frac: float = 1.0

    def __post_init__(self) -> None:
        cores = self.card.cores.value
        if not 1 <= self.n_threads <= cores:
            raise HardwareError(f"{self.n_threads} threads on {self.card.name}: choose 1 to {cores}, one a core")
        if not 0 <= self.local_frac <= 1:
            raise HardwareError(f"local_frac {self.local_frac} is a share; choose 0 to 1")
        if self.local_frac < 1 and self.card.nodes > 1 and self.card.remote_bytes_per_s is None:
            raise HardwareError(
                f"{self.card.name} states no remote_bytes_per_s; add it to the card or set local_frac 1"
            )

    @property
    def dram_bytes_per_s(self) -> float:
        """Bandwidth that the threads reach together when nobody else uses the DRAM [bytes/s].

        min(n_threads * core_bytes_per_s, used nodes * rate), rate = memory_frac / (local_frac / (DRAM / nodes) +
        (1 - local_frac) / remote), used nodes = ceil(n_threads / (cores / nodes)).
        """
        card, nodes = self.card, self.card.nodes
        near = card.dram_bytes_per_s.value / nodes
        far = near if nodes == 1 or card.remote_bytes_per_s is None else card.remote_bytes_per_s.value
        node_rate = self.constants.memory_frac / (self.local_frac / near + (1 - self.local_frac) / far)
        used_nodes = -(-self.n_threads * nodes // card.cores.value)
        return min(self.n_threads * self.constants.core_bytes_per_s, used_nodes * node_rate)

    @property
    def vector_flop_per_s(self) -> float:
        """Rate of the vector kernel with all threads [FLOP/s]."""
        return self._saturating(self.constants.vector, self.card.peak_flop_per_s["fp32"].value)

    def matrix_flop_per_s(self, dtype: str) -> float | None:
        """Rate of the matrix kernel with all threads [FLOP/s]; none where engine or card lack one for `dtype`."""
        peaks, names = self.card.peak_flop_per_s, MATRIX_PEAKS.get(dtype, HALF)
        peak = next((peaks[name].value for name in names if name in peaks), None)
        if self.constants.matrix is None or peak is None or dtype == "fp32":
            return None
        return self._saturating(self.constants.matrix, peak)

    def many_tokens_kernel(self, dtype: str) -> tuple[CpuKernel, float] | None:
        """Kernel for many tokens with its rate [FLOP/s]: the matrix kernel, else the packing one, else none."""
        matrix_flop_per_s, constants = self.matrix_flop_per_s(dtype), self.constants
        if constants.matrix is not None and matrix_flop_per_s is not None:
            return constants.matrix, matrix_flop_per_s
        if constants.packed is None:
            return None
        return constants.packed, self._saturating(constants.packed, self.card.peak_flop_per_s["fp32"].value)

    def _saturating(self, kernel: CpuKernel, peak: float) -> float:
        """n r / (1 + (n r / P)^4)^(1/4): linear in the threads n at first, at most P."""
        linear = self.n_threads * (kernel.core_frac * peak / self.card.cores.value)
        return linear / float(norm4(1.0, linear / (kernel.host_frac * peak)))


def find_cpu(name: str, n_threads: int | None = None, local_frac: float = 1.0) -> Host:
    """The host of this name with the constants that its card names, on `n_threads` cores (default: all)."""
    card = find_host(name)
    constants = find_cpu_kernels(card.kernels).constants
    threads = card.cores.value if n_threads is None else n_threads
    return Host(card=card, constants=constants, n_threads=threads, local_frac=local_frac)


def expert_s(tokens: ArrayLike, shape: ExpertShape, host: Host, dram_bytes_per_s: float | None = None) -> Times:
    """Time of one expert on all threads, for each number of tokens: float64[...] [s]; 0 without tokens.

    tokens            int[...]: tokens that the expert receives.
    dram_bytes_per_s  share of the DRAM's bandwidth (`hwmodels.sharing`); default: all that the threads reach.

    T = max((tokens + expert_tokens) * flop per token / rate, weight bytes / DRAM bandwidth): affine in the tokens above
    a floor. Up to vector_tokens tokens the vector kernel's rate and expert_tokens apply, beyond those of the matrix
    kernel, or the packing one, if there is one. flop per token is 2 per weight; activations stay in caches.
    """
    weights = float(sum(n * k for n, k in shape.gemm_sizes))
    compute_s = _compute_s(np.asarray(tokens, np.float64), weights, shape.weight_dtype, host)
    return _read_s(compute_s, weights * shape.bytes_per_weight, host, dram_bytes_per_s)


def experts_s(slot_tokens: ArrayLike, shape: ExpertShape, host: Host, dram_bytes_per_s: float | None = None) -> Times:
    """Time of a layer's experts on the host, one after another: float64[...] [s]; 0 without any token.

    slot_tokens  int[..., expert]. T = call_s + sum over experts of `expert_s`: the first expert pays for the call.
    """
    tokens = np.asarray(slot_tokens)
    total_s = expert_s(tokens, shape, host, dram_bytes_per_s).sum(axis=-1)
    return np.asarray((tokens > 0).any(axis=-1) * host.constants.call_s + total_s)


def gemm_s(
    m: ArrayLike, sizes: tuple[int, int], dtype: str, host: Host, dram_bytes_per_s: float | None = None
) -> Times:
    """Time of a product [m, k] x [k, n] on the host, sizes = (n, k): float64[...] [s]; the law of `expert_s`."""
    n, k = sizes
    compute_s = _compute_s(np.asarray(m, np.float64), float(n * k), dtype, host)
    return host.constants.call_s + _read_s(compute_s, n * k * BYTES_PER_VALUE[dtype], host, dram_bytes_per_s)


def attention_s(cache_bytes: ArrayLike, flop: ArrayLike, host: Host, dram_bytes_per_s: float | None = None) -> Times:
    """Time of decode attention on the host: float64[...] [s]; the cache is read once, at the vector kernel's rate.

    cache_bytes  float[...]: bytes of keys and values (or latents) that all requests read.
    flop         float[...]: scores and weighted sums of all heads.

    T = call_s + max(cache bytes / DRAM bandwidth, flop / rate).
    """
    bandwidth = host.dram_bytes_per_s if dram_bytes_per_s is None else dram_bytes_per_s
    read_s = np.asarray(cache_bytes, np.float64) / bandwidth
    return host.constants.call_s + np.maximum(read_s, np.asarray(flop, np.float64) / host.vector_flop_per_s)


def _compute_s(tokens: Times, weights: float, dtype: str, host: Host) -> Times:
    """Time of multiplication alone, 0 without tokens."""
    constants, many = host.constants, host.many_tokens_kernel(dtype)
    compute_s = rows_s(tokens, constants.vector.expert_tokens, weights, host.vector_flop_per_s)
    if many is not None:
        kernel, flop_per_s = many
        many_s = rows_s(tokens, kernel.expert_tokens, weights, flop_per_s)
        compute_s = np.where(tokens > constants.vector_tokens, many_s, compute_s)
    return np.where(tokens > 0, compute_s, 0.0)


def _read_s(compute_s: Times, weight_bytes: float, host: Host, dram_bytes_per_s: float | None) -> Times:
    """Time of multiplication, and of the weights' way from DRAM where that takes longer."""
    bandwidth = host.dram_bytes_per_s if dram_bytes_per_s is None else dram_bytes_per_s
    return np.where(compute_s > 0, np.maximum(compute_s, weight_bytes / bandwidth), 0.0)
