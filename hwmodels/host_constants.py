"""Constants of the laws of a host's cores: `hwmodels.host` holds the laws, cpu-kernels.yaml the values."""

from __future__ import annotations

from pydantic import Field

from hwmodels.fitted import Fitted
from scenarios.sources import Spec
from scenarios.units import BytesPerS, Seconds


class CpuKernel(Spec):
    """One kind of multiplication on the cores of a host.

    Fractions are of the card's peak: float32 for vector kernels, the data type's own for matrix kernels.
    """

    core_frac: float = Field(gt=0, description="share of a core's part of the peak that it reaches beside few others")
    host_frac: float = Field(gt=0, description="share of the host's peak that ever more threads approach")
    expert_tokens: float = Field(default=0.0, ge=0, description="fixed work of an expert or matrix, in tokens")


class CpuConstants(Fitted):
    """Experts, GEMM and attention on the cores of a host, of one engine."""

    call_s: Seconds = Field(description="once per call: waking the threads, and the barrier at the end")
    memory_frac: float = Field(gt=0, le=1, description="share of dram_bytes_per_s that streamed weights reach")
    core_bytes_per_s: BytesPerS = Field(description="what one thread reads from DRAM")
    vector: CpuKernel
    matrix: CpuKernel | None = Field(default=None, description="tile kernel such as AMX; needs a peak of the card")
    packed: CpuKernel | None = Field(
        default=None, description="vector kernel that packs weights first, where no matrix kernel serves their type"
    )
    vector_tokens: int = Field(
        default=0, ge=0, description="tokens of an expert up to which the plain vector kernel runs"
    )
