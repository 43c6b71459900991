"""What a plan makes every link carry: bytes through the ports of each device, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodels.links import port_s
from placement.reduction import Reduction
from scenarios.schedule_specs import ScheduleSpec
from sim.kernel_pricing import token_bytes
from sim.setting import Setting

DIRECTIONS = ("send", "receive")


@dataclass(frozen=True, slots=True, kw_only=True)
class PortLoads:
    """Ports of all devices in one step, dispatch and combine of all MoE layers together.

    links        kind of the link inside nodes, then of that between nodes where there are several.
    moved_bytes  float64[link, direction, device]; directions as in `DIRECTIONS`.
    busy_s       the same over the link's effective bandwidth, without latency [s].
    """

    links: tuple[str, ...]
    moved_bytes: NDArray[np.float64]
    busy_s: NDArray[np.float64]


def port_loads(setting: Setting, reduction: Reduction, schedule: ScheduleSpec) -> PortLoads:
    """Means over the setting's steps; a combine takes the way of its dispatch backwards."""
    cluster, ports, exchange = setting.cluster, reduction.ports, schedule.exchange
    there, back = token_bytes(setting, exchange.dispatch_dtype), token_bytes(setting, exchange.combine_dtype)
    cards = [cluster.intra] if cluster.n_nodes == 1 or cluster.inter is None else [cluster.intra, cluster.inter]
    sides = [(ports.send_intra, ports.receive_intra), (ports.send_inter, ports.receive_inter)]
    moved = []
    for send, receive in sides[: len(cards)]:
        sent, received = (side.sum(axis=(0, 1)) / setting.batches.n_steps for side in (send, receive))
        moved.append([sent * there + received * back, received * there + sent * back])
    moved_bytes = setting.exchange_passes * np.array(moved)
    return PortLoads(
        links=tuple(card.kind for card in cards),
        moved_bytes=moved_bytes,
        busy_s=np.stack([port_s(amount, card) for amount, card in zip(moved_bytes, cards, strict=True)]),
    )
