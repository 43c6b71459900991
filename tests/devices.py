"""Devices and links for tests of formulas: an H200, a GPU with round numbers, and the same made slower."""

from dataclasses import replace
from typing import Any, TypeVar

from hwmodels.attention import AttentionConstants
from hwmodels.cards import DeviceCard, LinkCard
from hwmodels.constants import KernelConstants
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.gqa import DecodeConstants, PrefillConstants
from hwmodels.mla import MlaDecodeConstants, MlaPrefillConstants
from scenarios.sources import Sourced

Block = TypeVar("Block", bound=Fitted)

# Typical of H200 kernels (aiconfigurator-core 0.12.0 tables, Apache-2.0), chosen by hand, not fitted to shapes.
TYPICAL: dict[str, Any] = {
    "gemm_compute_frac": 0.77,
    "memory_frac": 0.9,
    "activation_memory_frac": 0.4,
    "kernel_s": "3.4 us",
    "moe_fixed_s": "27 us",
    "wave_s": "1 us",
    "tile_frac_16": 0.25,
    "tile_frac_64": 0.5,
    "tile_frac_128": 1.0,
    "attention_compute_frac": 0.65,
    "attention_fixed_s": "8.4 us",
    "attention_wave_s": "3.4 us",
}
ROUND: dict[str, Any] = {
    "gemm_compute_frac": 0.5,
    "memory_frac": 0.5,
    "activation_memory_frac": 0.25,
    "kernel_s": "2 us",
    "moe_fixed_s": "20 us",
    "wave_s": "1 us",
    "tile_frac_16": 0.2,
    "tile_frac_64": 0.4,
    "tile_frac_128": 1.0,
    "attention_compute_frac": 0.5,
    "attention_fixed_s": "8 us",
    "attention_wave_s": "3 us",
}

ORIGIN: dict[str, Any] = {"source": "test", "kind": "assumed"}
# Beside `round_gpu`: one multiprocessor alone reads 80 GB/s; 5 TFLOP/s and 10 GB/s of queries on each in prefill.
ROUND_ATTENTION = AttentionConstants(
    decode=DecodeConstants(
        **ORIGIN,
        fixed_s="8 us",
        unit_s="3 us",
        unit_dim_s="1 us",
        memory_frac=0.5,
        sm_memory_frac=2,
        tile_s="0.5 us",
        split_s="2 us",
        request_s="10 ns",
        mask_s="4 us",
        pad_s="5 us",
        max_splits=16,
    ),
    prefill=PrefillConstants(
        **ORIGIN,
        fixed_s="8 us",
        item_s="3 us",
        memory_frac=0.25,
        compute_frac=0.5,
        softmax_dims=32,
        split_s="2 us",
        token_s="1 ns",
        mask_s="4 us",
        pad_s="5 us",
    ),
    mla_decode=MlaDecodeConstants(
        **ORIGIN,
        fixed_s="8 us",
        unit_s="3 us",
        unit_memory_frac=1,
        memory_frac=0.5,
        sm_memory_frac=2,
        compute_frac=0.5,
        split_s="2 us",
        request_s="10 ns",
    ),
    mla_prefill=MlaPrefillConstants(
        **ORIGIN,
        fixed_s="8 us",
        item_s="3 us",
        memory_frac=0.25,
        compute_frac=0.5,
        softmax_dims=32,
        split_s="2 us",
        token_s="1 ns",
        mask_s="0 s",
    ),
)


def half_speed_attention(constants: AttentionConstants) -> AttentionConstants:
    """The constants with all times doubled; rates are shares of the device's."""
    return AttentionConstants(
        decode=_doubled(constants.decode),
        prefill=_doubled(constants.prefill),
        mla_decode=_doubled(constants.mla_decode),
        mla_prefill=_doubled(constants.mla_prefill),
    )


def h200(**constants: Any) -> Device:
    """H200 SXM of NVIDIA's data sheet; keywords override the typical constants."""
    return _device("h200", "4.8 TB/s", {"bf16": "989 TFLOP/s", "fp8": "1979 TFLOP/s"}, 132, TYPICAL | constants)


def round_gpu(**constants: Any) -> Device:
    """Numbers for hand calculation: 10 TFLOP/s on each of 100 SMs, 2 TB/s reached, 1 TB/s by activations."""
    return _device("round", "4 TB/s", {"bf16": "1 PFLOP/s", "fp8": "2 PFLOP/s"}, 100, ROUND | constants)


def link(bytes_per_s: str = "100 GB/s", latency_s: str = "5 us", efficiency: float = 0.8) -> LinkCard:
    numbers = {"bytes_per_s": bytes_per_s, "latency_s": latency_s, "efficiency": efficiency}
    return LinkCard.model_validate({"name": "link", "kind": "nvlink"} | _assumed(numbers))


def half_speed(device: Device) -> Device:
    """The device with all rates halved and all fixed times doubled."""
    card = device.card
    peaks = {dtype: _times(peak, 0.5) for dtype, peak in card.peak_flop_per_s.items()}
    slow = {"peak_flop_per_s": peaks, "memory_bytes_per_s": _times(card.memory_bytes_per_s, 0.5)}
    fixed = {name: _times(value, 2.0) for name, value in device.constants if name.endswith("_s")}
    return replace(device, card=card.model_copy(update=slow), constants=device.constants.model_copy(update=fixed))


def half_speed_link(card: LinkCard) -> LinkCard:
    slow = {"bytes_per_s": _times(card.bytes_per_s, 0.5), "latency_s": _times(card.latency_s, 2.0)}
    if card.step_latency_s is not None:
        slow["step_latency_s"] = _times(card.step_latency_s, 2.0)
    return card.model_copy(update=slow)


def half_speed_law(law: Fitted) -> Fitted:
    """The fitted law with its own rates halved and its times doubled; shares of a link's bandwidth stay."""
    slow: dict[str, Any] = {}
    for name in type(law).model_fields:
        value = getattr(law, name)
        if name.endswith("_per_s"):
            slow[name] = value / 2
        elif name == "latencies_s":
            slow[name] = tuple(2 * one for one in value)
        elif name.endswith("_s"):
            slow[name] = value * 2
    return law.model_copy(update=slow)


def _times(number: Sourced[float], factor: float) -> Sourced[float]:
    return number.model_copy(update={"value": number.value * factor})


def _doubled(constants: Block) -> Block:
    return constants.model_copy(update={name: 2 * value for name, value in constants if name.endswith("_s")})


def _assumed(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: {"value": value, "source": "test", "kind": "assumed"} for name, value in numbers.items()}


def _device(name: str, memory: str, peaks: dict[str, str], n_sms: int, constants: dict[str, Any]) -> Device:
    numbers = _assumed({"memory_bytes": "141 GB", "memory_bytes_per_s": memory, "n_sms": n_sms})
    card = {"name": name, "kind": "gpu", "peak_flop_per_s": _assumed(peaks)} | numbers
    return Device(card=DeviceCard.model_validate(card), constants=KernelConstants.model_validate(_assumed(constants)))
