"""Resources of a cluster as rows of a bound: how much a token asks of each, and how many tokens/s that allows.

Each row holds for any schedule; those marked "any plan" for any placement of the experts, too. Time of all devices is
pooled: a plan cannot beat perfect balance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hwmodels.core_constants import CoreProduct
from hwmodels.cores import weights_frac
from hwmodels.fitted import Fitted
from hwmodels.fluid import fluid_moe_s
from hwmodels.moe import expert_shape
from placement.exchange_time import SIDES
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.schedule_specs import ExchangeSpec
from sim.bound.demand import Demand, Visits, demands, visits_of
from sim.durations import Duration, ExchangeTime
from sim.exchange_pricing import exchange_prices
from sim.laws_used import used_laws
from sim.pricing import PARTS_OF_ATTENTION, layer_prices
from sim.setting import Setting

Holds = Literal["any plan", "this plan"]
Kind = Literal["hardware", "kernels", "links"]
LayerPrices = dict[str, tuple[Duration, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One row: demand of a token, capacity of all devices, both in `unit`; `tokens_per_s` is their quotient.

    kind   "hardware": datasheet numbers alone (or what a law reaches, where it exceeds them); "kernels": time of the
           kernel laws; "links": time of the exchange laws.
    weight relative growth of the bound with the capacity, of a linear programme whose dual values say so; None: 1 for
           the row that allows least, and 0 for the others.
    """

    name: str
    kind: Kind
    unit: str
    demand_per_token: float
    capacity: float
    holds: Holds
    detail: str
    weight: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Throughput that the resource allows; infinite where nothing is asked of it."""
        return self.capacity / self.demand_per_token if self.demand_per_token > 0 else float("inf")


def resources(
    setting: Setting,
    placement: Placement,
    reduction: Reduction,
    exchange: ExchangeSpec,
    visits: Visits | None = None,
) -> tuple[Resource, ...]:
    """The rows of a setting under a plan with this exchange; `visits` default to those of any plan."""
    visits, prices = visits or visits_of(placement, reduction, setting.widths), layer_prices(setting)
    asked = demands(setting, visits)
    busy_s = other_kernels_s(setting, prices) + experts_floor_s(setting, placement, visits)
    return (
        _multiplication(setting, asked),
        _memory(setting, asked),
        _kernels(setting, busy_s),
        *link_resources(setting, prices, reduction, exchange),
    )


def _tokens(setting: Setting) -> float:
    """Tokens of a step, of all devices."""
    return float(setting.workload.tokens_per_device * setting.cluster.n_devices)


def _multiplication(setting: Setting, asked: tuple[Demand, ...]) -> Resource:
    """Dense multiplication; work in another data type counts by the ratio of the peaks."""
    device, n_devices = setting.cluster.device, setting.cluster.n_devices
    main = setting.model.expert_dtype or setting.model.weight_dtype
    peak, reached = device.peak_flop_per_s(main), _most(setting, "compute_frac", "packed_frac", "vector_frac")
    if setting.widths is not None:
        reached /= min(width.time_frac or 1.0 for width, _ in setting.widths.used())
    flop = sum(d.flop * peak / device.peak_flop_per_s(d.dtype) for d in asked)
    return Resource(
        name="multiplication",
        kind="hardware",
        unit="FLOP",
        demand_per_token=flop / _tokens(setting),
        capacity=peak * reached * n_devices,
        holds="any plan",
        detail=f"{main} peak of {n_devices} devices" + (f", times {reached:.2f} that a law reaches" * (reached > 1)),
    )


def _memory(setting: Setting, asked: tuple[Demand, ...]) -> Resource:
    device, n_devices = setting.cluster.device, setting.cluster.n_devices
    reached = max(_most(setting, "memory_frac", "weight_frac", "small_tile_frac"), _most_on_cores(setting))
    return Resource(
        name="memory bandwidth",
        kind="hardware",
        unit="B",
        demand_per_token=sum(d.read_bytes for d in asked) / _tokens(setting),
        capacity=device.memory_bytes_per_s * reached * n_devices,
        holds="any plan",
        detail="weights once a device, visited experts once, cache once"
        + (f"; times {reached:.2f} that a law reaches" * (reached > 1)),
    )


def _kernels(setting: Setting, busy_s: float) -> Resource:
    """Time of the devices by the kernel laws, were experts spread evenly and nothing waited for."""
    return Resource(
        name="device time",
        kind="kernels",
        unit="s",
        demand_per_token=busy_s / _tokens(setting),
        capacity=float(setting.cluster.n_devices),
        holds="any plan",
        detail="kernel laws, experts spread evenly, nothing waited for",
    )


def other_kernels_s(setting: Setting, prices: LayerPrices) -> float:
    """Device seconds of a mean step outside the experts, of all microbatches; of some kinds, of those alone."""
    model = setting.model
    n_moe = len(model.moe_layers)
    windowed = 0
    if "windowed attention" in prices:
        windowed = len(range(0, model.n_layers, model.attention.windowed_every))  # type: ignore[union-attr]
    counts = {
        "attention": model.n_layers - windowed,
        "windowed attention": windowed,
        "gate": n_moe,
        "shared": n_moe,
        "mlp": model.n_layers - n_moe,
        "head": 1,
    }
    total_s = 0.0
    for kind, parts in prices.items():
        for price in parts:
            if not isinstance(price, ExchangeTime) and kind not in PARTS_OF_ATTENTION:
                total_s += counts[kind] * float(price.sum(axis=-1).mean())
    return total_s


def experts_floor_s(setting: Setting, placement: Placement, visits: Visits) -> float:
    """Device seconds of the experts of a mean step at least; devices that share a rank's experts are all busy."""
    layout, n_layers = setting.layout, placement.n_layers
    shape = expert_shape(setting.model, layout.tp)
    cells = layout.n_ranks * n_layers
    if visits.by_width:
        return _floor_of_widths_s(setting, visits, cells) * layout.tp
    routed, active = visits.routed / cells, visits.active / cells
    mean_s = fluid_moe_s(routed, active, placement.slots_per_rank().mean(), shape, setting.cluster.device)
    return float(mean_s) * cells * layout.tp


def _floor_of_widths_s(setting: Setting, visits: Visits, cells: int) -> float:
    """Seconds of the experts of all ranks and layers at least, where every rank makes one call of some width."""
    shape, device = expert_shape(setting.model, setting.layout.tp), setting.cluster.device
    beside_s, calls_s = 0.0, []
    for width, routed, active in visits.by_width:
        multiplied, factor = width.multiplied(shape)
        calls_s.append(factor * float(fluid_moe_s(0.0, 0.0, 0.0, multiplied, device)))
        spread_s = factor * float(fluid_moe_s(routed / cells, active / cells, 0.0, multiplied, device))
        beside_s += spread_s - calls_s[-1]
    return (min(calls_s) + beside_s) * cells


def link_resources(
    setting: Setting, prices: LayerPrices, reduction: Reduction, exchange: ExchangeSpec
) -> tuple[Resource, ...]:
    """Send and receive ports of all devices, under the plan's own traffic, evenly spread."""
    exchanged, kernel = exchange_prices(setting, reduction, exchange), exchange.kernel
    others = [price for (price,) in prices.values() if isinstance(price, ExchangeTime)]
    return tuple(
        Resource(
            name=f"{side} ports",
            kind="links",
            unit="s",
            demand_per_token=_port_s(exchanged, others, setting, take) / _tokens(setting),
            capacity=float(setting.cluster.n_devices),
            holds="this plan",
            detail=f"exchange law, {kernel}, traffic of the plan spread evenly",
        )
        for side, take in _SIDES.items()
    )


_SIDES: dict[str, Callable[[ExchangeTime], np.ndarray]] = {
    "send": lambda time: time.send_s,
    "receive": lambda time: time.receive_s,
}


def _port_s(
    prices: dict[str, list[list[Duration]]],
    others: list[ExchangeTime],
    setting: Setting,
    take: Callable[[ExchangeTime], np.ndarray],
) -> float:
    """Port seconds of all devices in a mean step."""
    total_s = setting.model.n_layers * sum(float(take(price).sum(axis=-1).mean()) for price in others)
    for side in SIDES:  # stages inside nodes may have lanes of their own
        for chunks in prices.get(side, []):
            for price in chunks:
                if isinstance(price, ExchangeTime):
                    total_s += float(take(price).sum(axis=-1).mean())
    return total_s


def _most(setting: Setting, *fields: str) -> float:
    """Largest share of a datasheet number that any law of the setting may reach, at least 1."""
    return max([1.0, *(_reached(law, field) for law in used_laws(setting).values() for field in fields)])


def _most_on_cores(setting: Setting) -> float:
    """The same of weights that laws of cores stream; 0 where there are none."""
    found = {name: law for name, law in used_laws(setting).items() if isinstance(law, CoreProduct)}
    return max([0.0, *(weights_frac(name.split()[1], setting.cluster.device, law) for name, law in found.items())])


def _reached(law: Fitted, field: str) -> float:
    value = getattr(law, field, None)
    return float(value) if isinstance(value, float) else 0.0
