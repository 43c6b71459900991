"""Energy and cost of a token, from what is known of the devices and what the scenario says of prices; never guessed.

Energy by accesses where a device's card has that of a byte read and of a multiplication; else its power times the time
of a step. Both leave hosts, links, cooling and idle time out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hwmodels.cluster import Cluster
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.errors import ScenarioError
from scenarios.schedule_specs import ScheduleSpec
from scenarios.specs import PricesSpec
from sim.bound.demand import demands, slot_visits
from sim.pim_pricing import near_work
from sim.setting import Setting, sides_of

Basis = Literal["accesses and multiplications", "power x time"]
PER_MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """FLOP, and bytes that are read from memory, of all devices in a mean step."""

    flop: float
    read_bytes: float


def energy_basis(setting: Setting) -> Basis | None:
    """What energy of the setting's devices goes by; None where their card states neither. Training goes by power."""
    card = setting.cluster.device.card
    if card.read_j_per_byte is not None and card.flop_j is not None and not setting.trains and setting.pool is None:
        return "accesses and multiplications"
    return "power x time" if _power_w(setting) is not None else None


def _power_w(setting: Setting) -> float | None:
    """Power of all devices, those of a pool of experts included; None where a card states none."""
    powers = [(side.cluster.device.card.power_w, side.cluster.n_devices) for side in sides_of(setting)]
    return None if any(power is None for power, _ in powers) else sum(p.value * n for p, n in powers if p is not None)


def energy_metrics(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec, tokens_per_s: float
) -> dict[str, float]:
    """Energy of the devices for a token; nothing where their card knows none."""
    n_tokens = setting.workload.tokens_per_device * setting.cluster.n_devices
    power_w = _power_w(setting)
    match energy_basis(setting):
        case "accesses and multiplications":
            return {"energy_j_per_token": accesses_j(setting, placement, reduction, schedule) / n_tokens}
        case "power x time" if power_w is not None:
            return {"energy_j_per_token": power_w / tokens_per_s}
    return {}


def accesses_j(setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec) -> float:
    """Energy of a mean step [J]: flop x J/FLOP + bytes read x J/byte, each on the unit that does it.

    Weights are read once a device, experts once for every slot with tokens, caches once; activations are not counted.
    Raises ScenarioError where the card of PIM units that work lacks their energies.
    """
    card = setting.cluster.device.card
    if card.read_j_per_byte is None or card.flop_j is None:
        raise ScenarioError(f"{card.name} states no energy of accesses and multiplications")
    asked = demands(setting, slot_visits(placement, reduction, setting.widths))
    total = Work(flop=sum(d.flop for d in asked), read_bytes=sum(d.read_bytes for d in asked))
    if schedule.pim == "none":
        return total.flop * card.flop_j.value + total.read_bytes * card.read_j_per_byte.value
    units = card.pim
    if units is None or units.read_j_per_byte is None or units.flop_j is None:
        raise ScenarioError(f"{card.name}: its PIM units state no energy of accesses and multiplications; add them")
    flop, read_bytes = near_work(setting, placement, reduction, schedule)
    own_j = (total.flop - flop) * card.flop_j.value + (total.read_bytes - read_bytes) * card.read_j_per_byte.value
    return own_j + flop * units.flop_j.value + read_bytes * units.read_j_per_byte.value


def cost_metrics(setting: Setting, prices: PricesSpec | None, metrics: dict[str, float]) -> dict[str, float]:
    """Cost of a million tokens; nothing where the scenario has no prices.

    (devices x price + nodes x price) / (lifetime x share of it in use) / tokens/s + price of energy x J/token.
    Raises ScenarioError where the price of a device, or the energy of a token that is paid for, is not known.
    """
    if prices is None:
        return {}
    machine_usd = sum(_machine_usd(side.cluster, prices) for side in sides_of(setting))
    token_usd = machine_usd / (prices.lifetime * prices.used) / metrics["tokens_per_s"]
    if prices.energy is not None:
        if "energy_j_per_token" not in metrics:
            name = setting.cluster.device.card.name
            raise ScenarioError(f"prices.energy: {name} states neither power nor energies; leave it out")
        token_usd += prices.energy * metrics["energy_j_per_token"]
    return {"cost_usd_per_mtok": token_usd * PER_MILLION}


def _machine_usd(cluster: Cluster, prices: PricesSpec) -> float:
    card = cluster.device.card
    stated = None if card.price_usd is None else card.price_usd.value
    device_usd = stated if prices.device is None else prices.device
    if device_usd is None:
        raise ScenarioError(f"prices: {card.name} states no price; give prices.device")
    return cluster.n_devices * device_usd + cluster.n_nodes * prices.node
