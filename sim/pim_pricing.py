"""Steps whose device has PIM units: their works, and which unit does what for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwmodels.attention import decode_work
from hwmodels.cards import PimUnits
from hwmodels.moe import expert_shape, grouped_gemm_moe_s
from hwmodels.pim import pim_experts_s, pim_s, pim_units, together_s
from placement.moe_time import expert_times_s, tokens_by_rank
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.models import GroupedQueryAttention
from scenarios.schedule_specs import ScheduleSpec
from scenarios.workload_specs import tokens_by_phase
from sim.durations import Duration, Seconds
from sim.kernel_pricing import machine_of
from sim.pricing import Prices, attended_tokens, attention_cores_s, layer_windows
from sim.program import Layer, Step, Units, Work
from sim.setting import Setting
from sim.stage_pricing import gathered_rows_s

Mask = NDArray[np.bool_]


def near(step: Step, setting: Setting, schedule: ScheduleSpec) -> Step:
    """The step with the works of PIM units beside those of the device. Raises HardwareError where it has no units."""
    exclusive = pim_units(setting.cluster.device.card).exclusive.value
    decodes = tokens_by_phase(setting.workload)[0] > 0
    beside = schedule.pim == "co-processing" and not exclusive

    def shared(layer: Layer) -> Layer:
        number = layer.number
        units = Units(
            output=Work("output", number),
            core=Work("pim core", number) if decodes else None,
            experts=replace(layer.chunks[0].experts, kind="pim experts") if layer.chunks else None,
            beside=beside,
        )
        return replace(layer, attention=Work("device core", number), units=units)

    return replace(step, layers=tuple(shared(layer) for layer in step.layers))


def with_units(
    prices: Prices, setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec
) -> Prices:
    """The prices with the works of both units; of each pair the work that is not done takes no time."""
    windows: dict[str, int | None] = {"": None}
    attention = setting.model.attention
    if prices.windowed_layers and isinstance(attention, GroupedQueryAttention):
        windows["windowed "] = attention.window_tokens
    cores: dict[str, tuple[Duration, ...]] = {}
    for prefix, window in windows.items():
        device_s, units_s = _cores(setting, window)
        cores |= {f"{prefix}device core": (device_s,), f"{prefix}pim core": (units_s,)}
    device_s, units_s = _experts(setting, placement, reduction, schedule)
    return prices.plus(cores).plus_chunks(
        {"experts": _by_layer(device_s, setting), "pim experts": _by_layer(units_s, setting)}
    )


def _by_layer(times_s: Seconds, setting: Setting) -> list[list[Duration]]:
    return [[row] for row in np.repeat(times_s, setting.layout.tp, axis=-1)]


def near_work(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec
) -> tuple[float, float]:
    """FLOP and bytes read by the units of all devices in a mean step."""
    model, n_steps = setting.model, setting.batches.n_steps
    near = np.where(*_experts_on_units(setting, placement, reduction, schedule), 0)
    flop = 2.0 * model.expert_parameters * float(near.sum()) / n_steps
    read_bytes = model.expert_bytes * float(np.count_nonzero(near)) / n_steps
    for window, n_layers in layer_windows(model):
        cores = decode_cores(setting, window)
        flop += float(cores.flop[cores.on_units].sum()) * n_layers / n_steps
        read_bytes += float(cores.read_bytes[cores.on_units].sum()) * n_layers / n_steps
    return flop, read_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Requests' attention of one layer, float64[step, device] each: time on either side, FLOP and bytes of cache."""

    device_s: Seconds
    units_s: Seconds
    flop: Seconds
    read_bytes: Seconds

    @property
    def on_units(self) -> Mask:
        """Where the units are faster."""
        faster: Mask = self.units_s < self.device_s
        return faster


def decode_cores(setting: Setting, window_tokens: int | None) -> Cores:
    """Attention of the setting's requests in a layer of this window."""
    model, tokens = setting.model, slice(tokens_by_phase(setting.workload)[0])
    attended = attended_tokens(setting, tokens, window_tokens)
    flop, read_bytes = decode_work(attended, model.attention, setting.attention_tp, model.kv_dtype)
    return Cores(
        device_s=attention_cores_s(setting, window_tokens)[0],
        units_s=pim_s(flop, read_bytes, pim_units(setting.cluster.device.card)),
        flop=flop,
        read_bytes=read_bytes,
    )


def _cores(setting: Setting, window_tokens: int | None) -> tuple[Seconds, Seconds]:
    """Cores of attention on the device and on its units, float64[step, device] each: prompts always on the device."""
    cores, prompts_s = decode_cores(setting, window_tokens), attention_cores_s(setting, window_tokens)[1]
    return prompts_s + np.where(cores.on_units, 0.0, cores.device_s), np.where(cores.on_units, cores.units_s, 0.0)


def _experts_on_units(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec
) -> tuple[Mask, NDArray[np.integer]]:
    """Which experts the units take, and the tokens of all: [layer, step, rank, place] each."""
    units, shape = pim_units(setting.cluster.device.card), expert_shape(setting.model, setting.layout.tp)
    tokens = tokens_by_rank(placement, reduction.slot_tokens)
    if schedule.pim == "co-processing":
        return _co_processed(setting, tokens, units), tokens
    whole_s = expert_times_s(machine_of(setting, schedule.exchange), placement, reduction)
    return np.broadcast_to((pim_experts_s(tokens, shape, units) < whole_s)[..., None], tokens.shape), tokens


def _experts(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec
) -> tuple[Seconds, Seconds]:
    """Experts on the device and on its units, float64[layer, step, rank] each."""
    units, shape = pim_units(setting.cluster.device.card), expert_shape(setting.model, setting.layout.tp)
    on_units, tokens = _experts_on_units(setting, placement, reduction, schedule)
    device_s = expert_times_s(machine_of(setting, schedule.exchange), placement, reduction, only=~on_units)
    if schedule.exchange.algorithm == "all-gather":
        device_s = device_s + gathered_rows_s(setting, reduction)
    return device_s, pim_experts_s(np.where(on_units, tokens, 0), shape, units)


def _co_processed(setting: Setting, tokens: NDArray[np.integer], units: PimUnits) -> Mask:
    """Experts that the units take where these share a layer with their device, bool[..., place].

    Look-up tables say how long an expert of so many tokens takes on either (Duplex, arXiv 2409.01141); experts that
    share a memory space go together, as a space serves one side at a time.
    """
    shape = expert_shape(setting.model, setting.layout.tp)
    counts = np.arange(int(tokens.max()) + 1)
    tables = (
        np.where(counts > 0, grouped_gemm_moe_s(counts[:, None], shape, setting.cluster.device), 0.0),
        pim_experts_s(counts[:, None], shape, units),
    )
    n_places = tokens.shape[-1]
    n_spaces = min(units.spaces.value if units.spaces is not None else n_places, n_places)
    first = np.arange(n_spaces) * n_places // n_spaces
    of_place = np.repeat(np.arange(n_spaces), np.diff(first, append=n_places))
    held, device_s, units_s = (np.add.reduceat(one, first, axis=-1) for one in (tokens, *(t[tokens] for t in tables)))
    return split_spaces(held, device_s, units_s, units)[..., of_place]


def split_spaces(held: NDArray[np.integer], device_s: Seconds, units_s: Seconds, units: PimUnits) -> Mask:
    """Memory spaces whose experts the units take, bool[..., space]: those of fewest tokens, at the least total time.

    held               int[..., space]: tokens of the experts there.
    device_s, units_s  float64[..., space]: time of these experts on either.

    Duplex's greedy: from all on the device, the space of fewest tokens moves while the longer of both times falls; it
    falls until one passes the other, so that this is the best of all such prefixes.
    """
    order = np.argsort(held, axis=-1, kind="stable")
    moved_s, left_s = (np.take_along_axis(times, order, axis=-1) for times in (units_s, device_s))
    none = np.zeros((*held.shape[:-1], 1))
    on_units_s = np.concatenate([none, moved_s.cumsum(axis=-1)], axis=-1)
    on_device_s = np.concatenate([left_s[..., ::-1].cumsum(axis=-1)[..., ::-1], none], axis=-1)
    n_moved = together_s(on_device_s, on_units_s, units).argmin(axis=-1)
    chosen = np.zeros(held.shape, bool)
    np.put_along_axis(chosen, order, np.arange(held.shape[-1]) < n_moved[..., None], axis=-1)
    return chosen
