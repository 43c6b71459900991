"""A device as the kernel laws see it: the card's numbers and the constants that apply to it."""

from __future__ import annotations

from dataclasses import dataclass

from hwmodels.cards import DeviceCard
from hwmodels.constants import KernelConstants
from scenarios.errors import HardwareError


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Parameters of one device; `hwmodels.gemm`, `attention` and `moe` hold the laws."""

    card: DeviceCard
    constants: KernelConstants

    @property
    def n_sms(self) -> int:
        """Units that run one tile at a time."""
        return self.card.n_sms.value

    @property
    def memory_bytes_per_s(self) -> float:
        """Datasheet memory bandwidth [bytes/s]."""
        return self.card.memory_bytes_per_s.value

    def peak_flop_per_s(self, dtype: str) -> float:
        """Datasheet peak of dense multiplication [FLOP/s]; weight-only types multiply in bf16.

        fp16 and bf16 stand for each other where a card has only one of them: they run at the same rate.

        Raises HardwareError where the card has no peak for `dtype`.
        """
        compute_dtype = MULTIPLIED_AS.get(dtype, dtype)
        peaks = self.card.peak_flop_per_s
        for name in (compute_dtype, SAME_RATE.get(compute_dtype, compute_dtype)):
            if name in peaks:
                return peaks[name].value
        have = ", ".join(sorted(peaks))
        raise HardwareError(f"{self.card.name} has no peak for {compute_dtype} (it has {have}); set another dtype")


# Weights of these types are expanded before the multiplication (weight-only kernels), or scaled per block.
MULTIPLIED_AS = {"fp8_block": "fp8", "int4": "bf16", "mxfp4": "bf16"}
SAME_RATE = {"bf16": "fp16", "fp16": "bf16"}
