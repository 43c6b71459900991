"""Bound of a device with PIM units: what of attention and experts they take off it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwmodels.moe import expert_shape
from hwmodels.pim import pim_experts_s, pim_units
from placement.moe_time import tokens_by_rank
from placement.plan import Placement
from placement.reduction import Reduction
from scenarios.schedule_specs import ScheduleSpec
from sim.bound.demand import Visits
from sim.bound.division import (
    Limits,
    Row,
    Uses,
    device_rows,
    divided_resources,
    empty_resource,
    uses_of_tokens,
)
from sim.bound.resources import Resource, resources
from sim.pim_pricing import decode_cores
from sim.pricing import layer_windows
from sim.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Requests' attention of a mean step, for each second that the device is spared.

    total_s              device seconds of all of it.
    units_s              seconds of the units at least.
    flop, read_bytes     work at most.
    """

    total_s: float
    units_s: float
    flop: float
    read_bytes: float


def near_uses(setting: Setting, placement: Placement, reduction: Reduction) -> Uses:
    """Uses of the setting's experts."""
    return uses_of_tokens(tokens_by_rank(placement, reduction.slot_tokens), setting.batches.n_steps)


def near_resources(
    setting: Setting, placement: Placement, reduction: Reduction, schedule: ScheduleSpec, uses: Uses
) -> tuple[Resource, ...]:
    """The rows of a setting at the best division between its devices and their units."""
    visits = Visits(routed=uses.routed, active=uses.total)
    own = resources(setting, placement, reduction, schedule.exchange, visits)
    attention = _attention(setting)
    rows = [_relieved(row, attention, setting) for row in device_rows(setting, placement, own, uses)]
    near = _unit_row(setting, uses, attention)
    if schedule.pim == "by-operation" or pim_units(setting.cluster.device.card).exclusive.value:
        rows += list(_shared(rows, near))
    return divided_resources(setting, [*rows, near], Limits(other=attention.total_s, away=uses.counts))


def _attention(setting: Setting) -> Attention:
    """What moving it brings at most: by the device, step and window where that is most."""
    found: list[NDArray[np.float64]] = []
    total_s = 0.0
    for window, n_layers in layer_windows(setting.model):
        cores = decode_cores(setting, window)
        total_s += n_layers * float(cores.device_s.sum()) / setting.batches.n_steps
        found.append(np.stack([cores.device_s, cores.units_s, cores.flop, cores.read_bytes]).reshape(4, -1))
    device_s, *others = np.concatenate(found, axis=1)
    if not device_s.any():
        return Attention(total_s=0.0, units_s=0.0, flop=0.0, read_bytes=0.0)
    some = device_s > 0
    units_s, flop, read_bytes = (one[some] / device_s[some] for one in others)
    return Attention(
        total_s=total_s, units_s=float(units_s.min()), flop=float(flop.max()), read_bytes=float(read_bytes.max())
    )


def _relieved(row: Row, attention: Attention, setting: Setting) -> Row:
    """The row with the second variable: device seconds of attention that the units take over."""
    device, model = setting.cluster.device, setting.model
    multiplied = "fp32" if model.kv_dtype == "fp32" else "bf16"
    rate = device.peak_flop_per_s(model.expert_dtype or model.weight_dtype) / device.peak_flop_per_s(multiplied)
    saved = {
        "multiplication": attention.flop * rate,
        "memory bandwidth": attention.read_bytes,
        "device time": 1.0,
    }
    return replace(row, per_other=-saved.get(row.resource.name, 0.0))


def _unit_row(setting: Setting, uses: Uses, attention: Attention) -> Row:
    tp, units = setting.layout.tp, pim_units(setting.cluster.device.card)
    expert_s = pim_experts_s(uses.tokens[:, None], expert_shape(setting.model, tp), units)
    n_devices = float(setting.cluster.n_devices)
    return Row(
        resource=empty_resource("PIM time", "kernels", "s", n_devices, "law of the units, nothing waited for"),
        fixed=0.0,
        per_other=attention.units_s,
        per_away=tp * expert_s,
    )


def _shared(rows: list[Row], near: Row) -> Iterator[Row]:
    """Device and units after each other: the memory serves one side at a time, or operations follow each other."""
    for row in rows:
        if row.resource.name == "device time":
            yield Row(
                resource=replace(row.resource, name="device and PIM time", detail="one after the other"),
                fixed=row.fixed,
                per_other=row.per_other + near.per_other,
                per_away=row.per_away + near.per_away,
            )
