"""Hosts for tests of formulas: one with round numbers, and the same made slower."""

from dataclasses import replace
from typing import Any

from hwmodels.cards import HostCard
from hwmodels.host import Host
from hwmodels.host_constants import CpuConstants
from scenarios.sources import Sourced

VECTOR: dict[str, Any] = {"core_frac": 0.5, "host_frac": 0.4, "expert_tokens": 1.0}
MATRIX: dict[str, Any] = {"core_frac": 1.0, "host_frac": 0.8}


def round_host(
    n_threads: int = 100,
    local_frac: float = 1.0,
    vector: dict[str, Any] | None = None,
    matrix: dict[str, Any] | None = MATRIX,
    vector_tokens: int = 4,
) -> Host:
    """100 cores on two sockets, 400 GB/s of which half is reached, 10 TFLOP/s fp32, 40 bf16, 80 int8; 10 us a call."""
    numbers = {"n_sockets": 2, "cores": 100, "dram_channels": 16, "dram_bytes_per_s": "400 GB/s"}
    peaks = {"fp32": "10 TFLOP/s", "bf16": "40 TFLOP/s", "int8": "80 TOP/s"}
    card = {"name": "round", "peak_flop_per_s": _assumed(peaks)} | _assumed(numbers | {"remote_bytes_per_s": "50 GB/s"})
    constants = {"source": "test", "kind": "assumed", "call_s": "10 us", "memory_frac": 0.5}
    kernels = {"vector": VECTOR | (vector or {}), "matrix": matrix, "vector_tokens": vector_tokens}
    return Host(
        card=HostCard.model_validate(card),
        constants=CpuConstants.model_validate(constants | {"core_bytes_per_s": "7 GB/s"} | kernels),
        n_threads=n_threads,
        local_frac=local_frac,
    )


def half_speed_host(host: Host) -> Host:
    """The host with all rates halved and all fixed times doubled."""
    card, constants = host.card, host.constants
    slow: dict[str, Any] = {
        "peak_flop_per_s": {dtype: _times(peak, 0.5) for dtype, peak in card.peak_flop_per_s.items()},
        "dram_bytes_per_s": _times(card.dram_bytes_per_s, 0.5),
        "remote_bytes_per_s": _times(card.remote_bytes_per_s, 0.5) if card.remote_bytes_per_s else None,
    }
    fixed = {"call_s": 2 * constants.call_s, "core_bytes_per_s": constants.core_bytes_per_s / 2}
    return replace(host, card=card.model_copy(update=slow), constants=constants.model_copy(update=fixed))


def _times(number: Sourced[float], factor: float) -> Sourced[float]:
    return number.model_copy(update={"value": number.value * factor})


def _assumed(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: {"value": value, "source": "test", "kind": "assumed"} for name, value in numbers.items()}
