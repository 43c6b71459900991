"""Time of dispatch and combine at the ports of every device: measured kernels by their laws, others by alpha-beta."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwmodels.cards import LinkCard
from hwmodels.cluster import Cluster
from hwmodels.collectives import collective_s
from hwmodels.expert_exchange import DEFAULT_SMS, ExchangeCard, Shipment, exchange_s
from hwmodels.library import links_with
from hwmodels.links import port_s
from hwmodels.widths import ExpertWidths
from placement.layout import ExpertLayout
from scenarios.errors import HardwareError
from scenarios.models import BYTES_PER_ACTIVATION, DType, ModelCard
from scenarios.schedule_specs import ExchangeSpec

Tokens = NDArray[np.integer]
Seconds = NDArray[np.float64]
Side = Literal["dispatch", "combine"]
SIDES: tuple[Side, Side] = ("dispatch", "combine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Whose experts run where, and how tokens travel between them.

    widths  of the experts, where they are not all stored in the model's own data type.
    """

    model: ModelCard
    cluster: Cluster
    layout: ExpertLayout
    exchange: ExchangeSpec
    widths: ExpertWidths | None = None

    @property
    def forwards(self) -> bool:
        """Whether a token crosses to a node once and is forwarded inside it."""
        return self.exchange.dedup == "node" and self.layout.n_nodes > 1

    @property
    def messages(self) -> tuple[int, int]:
        """Messages that a device sends in one exchange, inside its node and between nodes: to another pool one a rank.

        With stages, one to every peer of the stage; an all-gather has steps of a ring instead.
        """
        cluster, algorithm = self.cluster, self.exchange.algorithm
        if self.layout.sources:
            return 0, self.layout.n_ranks
        inside, others = cluster.devices_per_node - 1, cluster.n_nodes - 1
        if algorithm == "sliced":
            return cluster.devices_per_node // self.layout.tp - 1, others * cluster.devices_per_node // self.layout.tp
        staged = algorithm not in ("direct", "coherent") or self.forwards
        return inside, others if staged else others * cluster.devices_per_node

    def copy_bytes(self, side: Side) -> float:
        """Bytes of one token's hidden state on its way."""
        asked = self.exchange.dispatch_dtype if side == "dispatch" else self.exchange.combine_dtype
        return token_bytes(self.model, asked)


def token_bytes(model: ModelCard, dtype: DType | None) -> float:
    """Bytes of one token's hidden state on the wire."""
    return model.exchange_size * BYTES_PER_ACTIVATION[dtype or model.activation_dtype]


def port_times_s(machine: Machine, side: Side, held: Tokens, copies: tuple[NDArray[Any], NDArray[Any]]) -> Seconds:
    """Time that one kind of port of each device is busy, latency included: float64[..., device] [s].

    held    int[...]: tokens that a device holds.
    copies  numbers[..., device]: copies through the port inside the node, and through that between nodes.
    A device's send port is busy for as long as the law says of the copies that it sends, the receive port of those that
    it receives; with uniform routing both are the measured time. A device alone exchanges nothing.
    Raises HardwareError where the kernel of the machine's exchange was not measured on its links.
    """
    spec, cluster, (inside, between) = machine.exchange, machine.cluster, copies
    if cluster.n_devices == 1:  # its tokens are where its experts are: there is no exchange to launch
        return np.zeros(np.shape(inside))
    size = machine.copy_bytes(side)
    if spec.kernel == "alpha-beta":
        return exchange_latency_s(cluster, forwards=machine.forwards) + slower_port_s(
            cluster, (inside * size, between * size), machine.messages
        )
    if spec.kernel == "nccl":
        return _nccl_s(cluster, inside * size)
    load = Shipment(
        tokens=held,
        copies=inside,
        copy_bytes=size,
        n_experts=machine.model.n_experts,
        top_k=machine.model.top_k,
        n_devices=cluster.n_devices,
        n_nodes=cluster.n_nodes,
        sms=spec.sms or DEFAULT_SMS,
    )
    return _fitted_s(machine, side, load, between)


def exchange_latency_s(cluster: Cluster, *, forwards: bool) -> float:
    """Fixed time of an exchange over all devices: of the slowest kind of link, or of both in turn where it forwards."""
    latencies_s = [link.latency_s.value for link in cluster.links]
    return sum(latencies_s) if forwards else max(latencies_s)


def measured_card(cluster: Cluster, kernel: str, link: LinkCard) -> ExchangeCard:
    """The fitted constants of a kernel on a link. Raises HardwareError where nobody measured it there."""
    card = _find(cluster, kernel, link)
    if card is None:
        raise unmeasured(kernel, link)
    return card


def unmeasured(kernel: str, link: LinkCard) -> HardwareError:
    """The error of a kernel on a link that nobody measured it on."""
    have = ", ".join(links_with(kernel)) or "no link"
    return HardwareError(
        f"schedule.exchange: kernel {kernel} was not measured on link {link.name}, only on {have}; "
        "use kernel alpha-beta"
    )


def slower_port_s(
    cluster: Cluster, moved_bytes: tuple[NDArray[Any], NDArray[Any]], messages: tuple[int, int] = (0, 0)
) -> Seconds:
    """Time of the slower of a device's two ports, which work at the same time: float64[..., device] [s].

    moved_bytes  numbers[..., device]: through the port inside the node, and through that between nodes.
    messages     that carry them, inside the node and between nodes, each with its time beside its bytes.
    """
    ways = zip(messages, moved_bytes, cluster.links, strict=False)  # on one node nothing goes between nodes
    ports_s = [n * link.message_overhead_s + port_s(moved, link) for n, moved, link in ways]
    return reduce(np.maximum, ports_s)


def _fitted_s(machine: Machine, side: Side, load: Shipment, between: NDArray[Any]) -> Seconds:
    """Between nodes the law of the network counts, and that of the copies inside nodes where it takes longer."""
    cluster, kernel = machine.cluster, machine.exchange.kernel
    if cluster.n_nodes == 1 or cluster.inter is None:
        return _kernel_s(machine, side, load, cluster.intra, measured_card(cluster, kernel, cluster.intra))
    network = measured_card(cluster, kernel, cluster.inter)
    times_s = _kernel_s(machine, side, replace(load, copies=between), cluster.inter, network)
    local = _find(cluster, kernel, cluster.intra)
    if local is None:
        return times_s
    return np.maximum(times_s, _kernel_s(machine, side, load, cluster.intra, local))


def _kernel_s(machine: Machine, side: Side, load: Shipment, link: LinkCard, card: ExchangeCard) -> Seconds:
    """Time of one side of an exchange; a dispatch begins with the exchange of counts, where the kernel has one."""
    bytes_per_s = link.bytes_per_s.value
    if side == "combine":
        low_precision = machine.copy_bytes(side) < 2 * machine.model.exchange_size
        special = card.combine_low_precision if low_precision else None
        return exchange_s(load, special or card.combine, bytes_per_s)
    times_s = exchange_s(load, card.dispatch, bytes_per_s)
    if card.prepare is None:
        return times_s
    return times_s + exchange_s(replace(load, copies=0.0), card.prepare, bytes_per_s)


def _nccl_s(cluster: Cluster, sent_bytes: NDArray[np.floating]) -> Seconds:
    """Time of the all-to-all of equal parts in which every device sends (or receives) as much as this one."""
    if cluster.collectives is None:
        raise unmeasured("nccl", cluster.intra)
    if cluster.n_nodes > 1:
        raise HardwareError("kernel nccl was measured inside a node only; use kernel alpha-beta between nodes")
    n = cluster.n_devices
    total_bytes = sent_bytes * (n / max(n - 1, 1))
    return collective_s("all-to-all", total_bytes, n, cluster.collectives, cluster.intra.bytes_per_s.value)


def _find(cluster: Cluster, kernel: str, link: LinkCard) -> ExchangeCard | None:
    return next((card for card in cluster.exchanges if (card.kernel, card.link) == (kernel, link.name)), None)
