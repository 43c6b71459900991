"""A device as the kernel laws see it: the card's numbers and the constants that apply to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from hwmodels.cards import DeviceCard
from hwmodels.kernels import Kernels
from hwmodels.measured_tables import NOTHING, Measured
from scenarios.errors import HardwareError
from scenarios.models import BYTES_PER_VALUE, DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Parameters of one device; `hwmodels.gemm`, `attention`, `mla` and `moe` hold the laws.

    measured  what tables of the kernel card correct laws by; `hwmodels.measured_rows.measure` reads them.
    experts_slowdown  times that experts take as long as their law and tables say, as the scenario states.
    """

    card: DeviceCard
    kernels: Kernels
    measured: Measured = NOTHING
    experts_slowdown: float = 1.0

    @property
    def n_sms(self) -> int:
        """Units that run one tile at a time."""
        return self.card.n_sms.value

    @property
    def memory_bytes_per_s(self) -> float:
        """Datasheet memory bandwidth [bytes/s]."""
        return self.card.memory_bytes_per_s.value

    @property
    def sm_bf16_flop_per_s(self) -> float:
        """Datasheet bf16 peak of one multiprocessor [FLOP/s]: the measure of what it loads and stores, too."""
        return self.peak_flop_per_s("bf16") / self.n_sms

    def multiplies(self, dtype: str) -> bool:
        """Whether the card has a peak for `dtype`."""
        return any(name in self.card.peak_flop_per_s for name in _compute_dtypes(dtype))

    def peak_flop_per_s(self, dtype: str) -> float:
        """Datasheet peak of dense multiplication [FLOP/s]; weight-only types multiply in bf16.

        fp16 and bf16 stand for each other where a card has only one of them: they run at the same rate.

        Raises HardwareError where the card has no peak for `dtype`.
        """
        peaks, names = self.card.peak_flop_per_s, _compute_dtypes(dtype)
        for name in names:
            if name in peaks:
                return peaks[name].value
        have = ", ".join(sorted(peaks))
        raise HardwareError(f"{self.card.name} has no peak for {names[0]} (it has {have}); set another dtype")


def computed_bytes(dtype: str) -> float:
    """Bytes of a value as weights of `dtype` are multiplied: those of bf16 where they are expanded first."""
    return BYTES_PER_VALUE[MULTIPLIED_AS.get(dtype, dtype)]


def kept_bytes(dtype: str) -> float:
    """Bytes of an activation between kernels of a model in `dtype`: 16 bits, or 32 where that type is fp32."""
    return BYTES_PER_VALUE["fp32" if dtype == "fp32" else "bf16"]


def _compute_dtypes(dtype: str) -> tuple[DType, ...]:
    """Data types whose peak applies to weights of `dtype`, the first that a card has."""
    computed = MULTIPLIED_AS.get(dtype, cast(DType, dtype))
    return (computed, SAME_RATE[computed]) if computed in SAME_RATE else (computed,)


# Weights of these types are expanded before the multiplication (weight-only kernels), or scaled per block.
MULTIPLIED_AS: dict[str, DType] = {"fp8_block": "fp8", "int4": "bf16", "mxfp4": "bf16"}
SAME_RATE: dict[str, DType] = {"bf16": "fp16", "fp16": "bf16"}
