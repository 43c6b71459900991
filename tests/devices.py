"""Devices and links for tests of formulas: an H200, a GPU with round numbers, one without losses, and them slower."""

from dataclasses import replace
from typing import Any

from hwmodels.cards import DeviceCard, LinkCard
from hwmodels.constants import Roofline
from hwmodels.devices import Device
from hwmodels.fitted import Fitted
from hwmodels.kernels import BLOCKS, KernelCard, Kernels
from scenarios.sources import Sourced

ORIGIN: dict[str, Any] = {"source": "test", "kind": "assumed"}

# Typical of H200 kernels (aiconfigurator-core 0.12.0 tables, Apache-2.0), rounded by hand, not fitted to shapes.
TYPICAL: dict[str, dict[str, Any]] = {
    "moe": {
        "law": "tiles",
        "tiles": "fastest",
        "fixed_s": "27 us",
        "expert_s": "0.02 us",
        "row_s": "0.001 us",
        "wave_s": "1 us",
        "compute_frac": 1.0,
        "load_bytes_per_flop": 0.023,
        "weight_frac": 0.9,
        "activation_frac": 0.4,
    },
    "gemm": {
        "law": "tiles",
        "fixed_s": "2.5 us",
        "split_s": "3 us",
        "load_bytes_per_flop": 0.025,
        "store_values_per_flop": 0.005,
        "memory_frac": 0.8,
        "compute_frac": 0.95,
        "quantise_frac": 0.3,
    },
    "decode": {
        "law": "split-kv",
        "fixed_s": "8 us",
        "unit_s": "1 us",
        "unit_dim_s": "1 us",
        "memory_frac": 0.94,
        "sm_memory_frac": 2.0,
        "tile_s": "0.6 us",
        "split_s": "2 us",
        "request_s": "0.02 us",
        "mask_s": "2.3 us",
    },
    "prefill": {
        "law": "tiles",
        "fixed_s": "9 us",
        "item_s": "2.7 us",
        "memory_frac": 1.2,
        "compute_frac": 1.0,
        "softmax_dims": 67,
        "split_s": "6.7 us",
        "token_s": "0.004 us",
        "mask_s": "0.3 us",
    },
    "mla_decode": {
        "law": "split-kv",
        "fixed_s": "7 us",
        "unit_s": "3 us",
        "unit_memory_frac": 0.9,
        "memory_frac": 1.0,
        "sm_memory_frac": 1.5,
        "compute_frac": 0.7,
        "split_s": "3 us",
        "request_s": "0.02 us",
    },
    "mla_prefill": {
        "law": "tiles",
        "fixed_s": "13 us",
        "item_s": "2 us",
        "memory_frac": 3.7,
        "compute_frac": 0.8,
        "softmax_dims": 40,
        "split_s": "4 us",
        "token_s": "0.001 us",
        "mask_s": "0 s",
    },
    "launch": {"kernel_s": "2.4 us", "small_memory_frac": 1.0, "eager_kernel_s": "20 us", "graph_s": "10 us"},
}
# Beside the card of `round_gpu`, a multiprocessor alone: 5 TFLOP/s in products, loads 200 GB/s, stores 100 G values/s
# once; in decode it reads 80 GB/s, in prefill 10 GB/s of queries.
ROUND: dict[str, dict[str, Any]] = {
    "moe": {
        "law": "tiles",
        "tiles": "fastest",
        "fixed_s": "20 us",
        "expert_s": "0.5 us",
        "row_s": "0.01 us",
        "wave_s": "1 us",
        "compute_frac": 0.5,
        "load_bytes_per_flop": 0.02,
        "weight_frac": 0.5,
        "activation_frac": 0.25,
    },
    "gemm": {
        "law": "tiles",
        "fixed_s": "2 us",
        "split_s": "3 us",
        "load_bytes_per_flop": 0.02,
        "store_values_per_flop": 0.01,
        "memory_frac": 0.5,
        "compute_frac": 0.5,
        "quantise_frac": 0.25,
    },
    "decode": {
        "law": "split-kv",
        "fixed_s": "8 us",
        "unit_s": "3 us",
        "unit_dim_s": "1 us",
        "memory_frac": 0.5,
        "sm_memory_frac": 2,
        "tile_s": "0.5 us",
        "split_s": "2 us",
        "request_s": "10 ns",
        "mask_s": "4 us",
        "pad_s": "5 us",
        "max_splits": 16,
    },
    "prefill": {
        "law": "tiles",
        "fixed_s": "8 us",
        "item_s": "3 us",
        "memory_frac": 0.25,
        "compute_frac": 0.5,
        "softmax_dims": 32,
        "split_s": "2 us",
        "token_s": "1 ns",
        "mask_s": "4 us",
        "pad_s": "5 us",
    },
    "mla_decode": {
        "law": "split-kv",
        "fixed_s": "8 us",
        "unit_s": "3 us",
        "unit_memory_frac": 1,
        "memory_frac": 0.5,
        "sm_memory_frac": 2,
        "compute_frac": 0.5,
        "split_s": "2 us",
        "request_s": "10 ns",
    },
    "mla_prefill": {
        "law": "tiles",
        "fixed_s": "8 us",
        "item_s": "3 us",
        "memory_frac": 0.25,
        "compute_frac": 0.5,
        "softmax_dims": 32,
        "split_s": "2 us",
        "token_s": "1 ns",
        "mask_s": "0 s",
    },
    "launch": {"kernel_s": "2 us", "small_memory_frac": 0.5, "eager_kernel_s": "10 us", "graph_s": "8 us"},
}
NO_LAUNCH = {"kernel_s": "0 s", "small_memory_frac": 1.0, "eager_kernel_s": "0 s", "graph_s": "0 s"}


def h200(**blocks: Any) -> Device:
    """H200 SXM of NVIDIA's data sheet with typical constants; keywords as of `round_gpu`."""
    return _device("h200", "4.8 TB/s", {"bf16": "989 TFLOP/s", "fp8": "1979 TFLOP/s"}, 132, _card(TYPICAL, blocks))


def round_gpu(**blocks: Any) -> Device:
    """Numbers for hand calculation: 4 TB/s and 10 TFLOP/s on each of 100 SMs, of which the laws of `ROUND` reach half.

    blocks  e.g. moe={"wave_s": "0 s"} changes fields of a block, gemm=roofline() replaces it.
    """
    return _device("round", "4 TB/s", {"bf16": "1 PFLOP/s", "fp8": "2 PFLOP/s"}, 100, _card(ROUND, blocks))


def ideal_gpu() -> Device:
    """The card of `round_gpu`, whose kernels reach peak and bandwidth at once and are launched in no time."""
    return round_gpu(**{block: roofline() for block in BLOCKS}, launch=NO_LAUNCH)


def roofline(fixed_s: str = "0 s", compute_frac: float = 1.0, memory_frac: float = 1.0) -> Roofline:
    numbers = {"law": "roofline", "fixed_s": fixed_s, "compute_frac": compute_frac, "memory_frac": memory_frac}
    return Roofline.model_validate(numbers | ORIGIN)


def kernel_card(name: str = "test", base: str | None = None, **blocks: Any) -> KernelCard:
    """A card of the given blocks only, each for `any` data type: fields, or ready constants."""
    entry = {block: constants if block == "launch" else {"any": constants} for block, constants in blocks.items()}
    return KernelCard.model_validate({"name": name, "base": base, **entry})


def link(bytes_per_s: str = "100 GB/s", latency_s: str = "5 us", efficiency: float = 0.8) -> LinkCard:
    numbers = {"bytes_per_s": bytes_per_s, "latency_s": latency_s, "efficiency": efficiency}
    return LinkCard.model_validate({"name": "link", "kind": "nvlink"} | _assumed(numbers))


def half_speed(device: Device) -> Device:
    """The device with all rates halved and all fixed times doubled; what is a share or per FLOP stays."""
    card = device.card
    peaks = {dtype: _times(peak, 0.5) for dtype, peak in card.peak_flop_per_s.items()}
    slow = {"peak_flop_per_s": peaks, "memory_bytes_per_s": _times(card.memory_bytes_per_s, 0.5)}
    cards = tuple(_half_speed_kernels(kernels) for kernels in device.kernels.cards)
    return replace(device, card=card.model_copy(update=slow), kernels=Kernels(cards=cards))


def half_speed_link(card: LinkCard) -> LinkCard:
    slow = {"bytes_per_s": _times(card.bytes_per_s, 0.5), "latency_s": _times(card.latency_s, 2.0)}
    if card.step_latency_s is not None:
        slow["step_latency_s"] = _times(card.step_latency_s, 2.0)
    return card.model_copy(update=slow)


def half_speed_law(law: Fitted) -> Fitted:
    """The fitted law with its own rates halved and its times doubled; shares of a device's or link's rates stay."""
    slow: dict[str, Any] = {}
    for name in type(law).model_fields:
        value = getattr(law, name)
        if value is None:
            continue
        if name.endswith("_per_s"):
            slow[name] = value / 2
        elif name == "latencies_s":
            slow[name] = tuple(2 * one for one in value)
        elif name.endswith("_s"):
            slow[name] = value * 2
    return law.model_copy(update=slow)


def _half_speed_kernels(card: KernelCard) -> KernelCard:
    slow: dict[str, Any] = {
        block: {dtype: half_speed_law(law) for dtype, law in getattr(card, block).items()} for block in BLOCKS
    }
    return card.model_copy(update=slow | {"launch": None if card.launch is None else half_speed_law(card.launch)})


def _times(number: Sourced[float], factor: float) -> Sourced[float]:
    return number.model_copy(update={"value": number.value * factor})


def _assumed(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: {"value": value, "source": "test", "kind": "assumed"} for name, value in numbers.items()}


def _card(usual: dict[str, dict[str, Any]], changed: dict[str, Any]) -> KernelCard:
    """The usual blocks with some changed; raises where `changed` names no block."""
    blocks = {
        name: changed[name] if isinstance(changed.get(name), Fitted) else fields | ORIGIN | changed.get(name, {})
        for name, fields in usual.items()
    }
    if not changed.keys() <= blocks.keys():
        raise ValueError(f"no such block: {changed.keys() - blocks.keys()}")
    return kernel_card(**blocks)


def _device(name: str, memory: str, peaks: dict[str, str], n_sms: int, kernels: KernelCard) -> Device:
    numbers = _assumed({"memory_bytes": "141 GB", "memory_bytes_per_s": memory, "n_sms": n_sms})
    card = {"name": name, "kind": "gpu", "peak_flop_per_s": _assumed(peaks)} | numbers
    return Device(card=DeviceCard.model_validate(card), kernels=Kernels(cards=(kernels,)))
