"""How far a step may be off: the 80 % bands of the laws carried through the schedule.

The error of one law is the same in all layers, because their shapes are; errors of different families are independent.
So each family is moved to the ends of its band as a whole, the schedule is executed again, and the families' deviations
add up in squares. A difference between two plans on the same laws is more certain than either step time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwmodels.collectives import collective_band
from hwmodels.devices import Device
from hwmodels.kernels import stretched_to
from hwmodels.measured_tables import moe_shape
from hwmodels.moe import expert_shape
from placement.exchange_time import SIDES
from scenarios.schedule_specs import ScheduleSpec
from sim.durations import Duration
from sim.kernel_pricing import exchange_band
from sim.launches import launched_eagerly, slowed_by_engine
from sim.laws import LAWS
from sim.laws_used import attention_blocks
from sim.log import busy_s
from sim.offload.prices import COMPUTED, HOSTED, host_bands
from sim.pricing import Prices, layer_prices
from sim.program import OpList
from sim.setting import Setting
from sim.stage_pricing import INSIDE_KINDS
from sim.training import BACKWARD, SUMS
from sim.vector import execute

End = Literal["low", "high"]
ENDS: tuple[End, ...] = ("low", "high")
SAMPLED_STEPS = 8
DEVICE_CORES = ("device core", "windowed device core")  # of devices with PIM units; of these no law has a band

KERNEL_FAMILIES: dict[str, tuple[str, ...]] = {
    "experts": ("moe",),
    "dense": ("gemm",),
    "attention": ("prefill", "decode", "mla_prefill", "mla_decode"),
    "small": ("launch",),
}
"""Family of laws -> blocks of a kernel card; the families `links` and `host` come on top."""

COLLECTIVES_OF_TRAINING = (*SUMS, "weights", "weights" + BACKWARD, "refresh")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBand:
    """An 80 % band of the mean step time over its prediction; families: (low, high) that each alone would give."""

    low: float
    high: float
    families: dict[str, tuple[float, float]]


UNREAD = StepBand(low=1.0, high=1.0, families={})
"""In place of a band where nobody asks for one: it takes as long as the simulation itself."""


def step_band(setting: Setting, prices: Prices, op_list: OpList, schedule: ScheduleSpec) -> StepBand:
    """The band of the mean step time, from up to `SAMPLED_STEPS` steps spread over the batch."""
    steps = _steps(setting)
    sampled = prices if len(steps) == setting.batches.n_steps else prices.at(steps)

    def mean_s(changed: Prices) -> float:
        finished = execute(op_list, changed.durations(op_list), law=LAWS[schedule.exchange.law])
        return float(finished.end_s.max(axis=(0, -1)).mean())

    predicted_s = mean_s(sampled)
    ends: dict[str, tuple[float, float]] = {}
    hosted = HOSTED[0] in prices.per_chunk or "page" in prices.per_layer
    beside = ("links", "host") if hosted else ("links",)
    for family in (*KERNEL_FAMILIES, *beside):
        low, high = (mean_s(_moved(setting, sampled, schedule, family, end)) / predicted_s for end in ENDS)
        ends[family] = (min(low, 1.0), max(high, 1.0))
    below = np.sqrt(sum((1 - low) ** 2 for low, _ in ends.values()))
    above = np.sqrt(sum((high - 1) ** 2 for _, high in ends.values()))
    return StepBand(low=float(1 - min(below, 1.0)), high=float(1 + above), families=ends)


def _steps(setting: Setting) -> NDArray[np.int64]:
    """The steps that are looked at, int64[step]."""
    n_steps = setting.batches.n_steps
    spread = np.linspace(0, n_steps - 1, min(SAMPLED_STEPS, n_steps))
    return np.unique(spread.round().astype(np.int64))


@lru_cache(maxsize=32)
def _at_end(setting: Setting, family: str, end: End) -> Setting:
    """The steps that are looked at, on devices with the laws of one family at one end of their bands."""
    moved = device_at_end(setting.cluster.device, KERNEL_FAMILIES[family], end)
    batches = setting.batches.at(_steps(setting))
    return replace(setting, batches=batches, cluster=replace(setting.cluster, device=moved))


def _moved(setting: Setting, prices: Prices, schedule: ScheduleSpec, family: str, end: End) -> Prices:
    """Prices with one family at one end of its band; in eager mode never below the launches of the host."""
    moved = _moved_work(setting, prices, schedule, family, end)
    if schedule.launch == "graph":
        return moved
    launch = setting.cluster.device.kernels.launch()
    factor = launch.low_high[ENDS.index(end)] if family == "small" else 1.0
    return launched_eagerly(moved, setting, schedule, factor)


def _moved_work(setting: Setting, prices: Prices, schedule: ScheduleSpec, family: str, end: End) -> Prices:
    if family == "links":
        return _moved_links(setting, prices, schedule, end)
    if family == "host":
        return prices.times({kind: ends[ENDS.index(end)] for kind, ends in host_bands(setting).items()})
    device = setting.cluster.device
    if family == "experts":
        kinds = ("experts", "local", "experts" + BACKWARD, *COMPUTED)
        return prices.times(dict.fromkeys(kinds, _experts_ends(setting)[ENDS.index(end)]))
    if family == "attention":
        blocks = attention_blocks(setting.model, setting.workload)
        ends = [device.kernels.find(block, setting.model.kv_dtype).low_high[ENDS.index(end)] for block in blocks]
        prices = prices.times(dict.fromkeys(DEVICE_CORES, min(ends) if end == "low" else max(ends)))
    n_parts = max(len(parts) for parts in prices.per_layer.values())
    own = layer_prices(_at_end(setting, family, end), n_parts, schedule.exchange)
    own = slowed_by_engine(replace(prices, per_layer=own), schedule).per_layer
    kept = {kind: own.get(kind, parts) for kind, parts in prices.per_layer.items()}
    located = {kind: _ratio(own[kind], prices.per_layer[kind]) for kind in own.keys() & prices.per_chunk.keys()}
    return replace(prices.times(located), per_layer=kept)


def _ratio(moved: Sequence[Duration], prices: Sequence[Duration]) -> float:
    """Moved over predicted times of one kind of work, in the mean."""
    totals_s = [sum(float(busy_s(one).mean()) for one in parts) for parts in (moved, prices)]
    return totals_s[0] / totals_s[1] if totals_s[1] > 0 else 1.0


def _experts_ends(setting: Setting) -> tuple[float, float]:
    device, shape = setting.expert_cluster.device, expert_shape(setting.model, setting.layout.tp)
    key = moe_shape(shape.hidden_size, shape.intermediate_size, shape.gated)
    return device.measured.low_high("moe", shape.weight_dtype, key) or device.kernels.moe(shape.weight_dtype).low_high


def device_at_end(device: Device, blocks: Collection[str], end: End) -> Device:
    """A device whose blocks take the times of one end of their band: that of a table for shapes it holds."""
    place = ENDS.index(end)
    tables = {
        (block, dtype): held.band[place] / device.kernels.find(block, dtype).low_high[place]
        for (block, dtype), held in device.measured.blocks.items()
        if block in blocks and held.band is not None
    }
    kernels = stretched_to(device.kernels, blocks, end)
    return replace(device, kernels=kernels, measured=device.measured.times(tables))


def _moved_links(setting: Setting, prices: Prices, schedule: ScheduleSpec, end: End) -> Prices:
    place = ENDS.index(end)
    inside = setting.cluster.intra.band
    factors = dict.fromkeys(INSIDE_KINDS, (inside.low, inside.high)[place])
    factors |= {kind: exchange_band(setting, schedule.exchange, kind)[place] for kind in SIDES}
    factors["fetch"] = factors["contexts"] = factors["dispatch"]
    slowest = inside if setting.cluster.inter is None or setting.cluster.n_nodes == 1 else setting.cluster.inter.band
    factors |= dict.fromkeys(COLLECTIVES_OF_TRAINING, (slowest.low, slowest.high)[place])
    if setting.attention_tp > 1:
        factors["gather"] = _collective_ends(setting, "all-gather")[place]
        factors["scatter"] = _collective_ends(setting, "reduce-scatter")[place]
    return prices.times(factors)


def _collective_ends(setting: Setting, op: Literal["all-gather", "reduce-scatter"]) -> tuple[float, float]:
    card = setting.cluster.collectives
    if card is None:
        return setting.cluster.intra.band.low, setting.cluster.intra.band.high
    return collective_band(op, setting.attention_tp, card)
