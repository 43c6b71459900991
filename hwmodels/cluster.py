"""The machine of a scenario: equal nodes of equal devices, and the graph of their links."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwmodels.cards import CardSet, DeviceCard, HostCard, LinkCard, NodeCard
from hwmodels.collectives import CollectiveCard
from hwmodels.devices import Device
from hwmodels.expert_exchange import ExchangeCard
from hwmodels.library import (
    cards_with,
    exchanges_on,
    find_collectives,
    find_device,
    find_host,
    find_kernels,
    find_link,
    find_node,
    list_cards,
)
from scenarios.cluster_specs import ClusterSpec
from scenarios.errors import HardwareError

if TYPE_CHECKING:
    import networkx as nx

NETWORK = "network"
HOST_NUMBERS = ("host", "host_bandwidth", "host_message", "host_memory_bandwidth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`n_nodes` equal nodes of `devices_per_node` devices; devices are numbered node by node from 0.

    intra       link of each device to the fabric of its node; inter: its network port, None where there is none.
    host        the host of each node, all sockets together; host_link: link of each device to it. Both or neither.
    cards       all hardware cards that the scenario knows; None: the shipped ones.
    collectives NCCL as measured on `intra`, None where nobody did; exchanges: kernels measured on `intra` or `inter`.
    """

    name: str
    device: Device
    n_nodes: int
    devices_per_node: int
    intra: LinkCard
    inter: LinkCard | None
    host: HostCard | None
    host_link: LinkCard | None
    collectives: CollectiveCard | None = None
    exchanges: tuple[ExchangeCard, ...] = ()
    cards: CardSet | None = None

    def __post_init__(self) -> None:
        if self.n_nodes < 1 or self.devices_per_node < 1:
            raise HardwareError(f"{self.name}: {self.n_nodes} nodes of {self.devices_per_node} devices; give 1 or more")
        if self.n_nodes > 1 and self.inter is None:
            remedy = "set nodes: 1 or name a node card that has one"
            raise HardwareError(f"{self.name}: {self.n_nodes} nodes need an inter_link, and there is none; {remedy}")
        if (self.host is None) != (self.host_link is None):
            raise HardwareError(f"{self.name}: host and host_link belong together; give both or neither")

    @property
    def n_devices(self) -> int:
        """Devices of all nodes."""
        return self.n_nodes * self.devices_per_node

    @property
    def links(self) -> tuple[LinkCard, ...]:
        """The links that tokens travel on: inside a node, and between nodes where there are several."""
        return (self.intra,) if self.n_nodes == 1 or self.inter is None else (self.intra, self.inter)

    def node_of_device(self) -> NDArray[np.int64]:
        """Node of every device: int64[device]."""
        return np.repeat(np.arange(self.n_nodes, dtype=np.int64), self.devices_per_node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One link of a route, from `source` to `target`; bandwidth is what large messages reach."""

    source: str
    target: str
    link: str
    bytes_per_s: float
    latency_s: float


def node_devices(spec: ClusterSpec, base: Path = Path()) -> int:
    """Devices of a whole node, of which the scenario may use some. Raises HardwareError for an unknown card."""
    return int(find_node(spec.node, _cards(spec, base)).n_devices.value)


def _cards(spec: ClusterSpec, base: Path) -> CardSet:
    return cards_with(base / spec.cards) if spec.cards else list_cards()


def build_cluster(spec: ClusterSpec, base: Path = Path()) -> Cluster:
    """The cluster that a scenario describes, from the shipped cards and the scenario's own numbers.

    A bandwidth of the scenario replaces the nominal one of the link card and keeps its efficiency and latency. Files of
    cards are relative to `base`.
    Raises HardwareError for an unknown card, several nodes without a network, or a bandwidth without its link.
    """
    cards = _cards(spec, base)
    node = find_node(spec.node, cards)
    card = _sustained(find_device(spec.device or node.device, cards), spec.sustained_frac)
    kernels = find_kernels(spec.kernels or card.kernels, base, cards)
    device = _measured(Device(card=card, kernels=kernels, experts_slowdown=spec.experts_slowdown))
    inter = find_link(node.inter_link, cards) if node.inter_link else None
    for name in ("inter_bandwidth", "inter_message"):
        if inter is None and getattr(spec, name) is not None:
            raise HardwareError(f"{node.name} has no inter_link, so {name} has no meaning; use another node card")
    host, host_link = _host_of(spec, node, cards)
    return Cluster(
        name=_cluster_name(spec, node),
        device=device,
        n_nodes=spec.nodes,
        devices_per_node=spec.devices_per_node or node.n_devices.value,
        intra=_stated(find_link(node.intra_link, cards), spec.intra_bandwidth, spec.intra_message),
        inter=_stated(inter, spec.inter_bandwidth, spec.inter_message) if inter else None,
        host=host,
        host_link=host_link,
        collectives=find_collectives(node.intra_link, cards=cards),
        exchanges=exchanges_on(node.intra_link, node.inter_link, cards=cards),
        cards=cards,
    )


def build_graph(cluster: Cluster) -> nx.Graph:
    """Undirected graph of the cluster's devices, node switches, hosts and network.

    Nodes are named `device:3`, `switch:0`, `host:0` and `network`, with attributes `kind` and `node` (None for the
    network). Edges carry `link` (name of the card), `bytes_per_s` (per direction, reached by large messages) and
    `latency_s`. The network exists where there are several nodes; every device has a port of its own to it.
    """
    import networkx as nx

    graph = nx.Graph(name=cluster.name)
    for node in range(cluster.n_nodes):
        graph.add_node(f"switch:{node}", kind="switch", node=node)
        if cluster.host is not None:
            graph.add_node(f"host:{node}", kind="host", node=node)
    if cluster.n_nodes > 1:
        graph.add_node(NETWORK, kind="network", node=None)
    for device, node in enumerate(cluster.node_of_device().tolist()):
        graph.add_node(f"device:{device}", kind="device", node=node)
        _add_link(graph, f"device:{device}", f"switch:{node}", cluster.intra)
        if cluster.n_nodes > 1:
            _add_link(graph, f"device:{device}", NETWORK, cluster.inter)
        if cluster.host is not None:
            _add_link(graph, f"device:{device}", f"host:{node}", cluster.host_link)
    return graph


def route(graph: nx.Graph, source: str, target: str) -> list[Hop]:
    """Links from one device or host to another: inside a node over its switch, between nodes over the network.

    Traffic between devices never crosses a host. Empty where source and target are the same.
    Raises HardwareError for names that the graph does not hold.
    """
    import networkx as nx

    unknown = [name for name in (source, target) if name not in graph]
    if unknown:
        raise HardwareError(
            f"{graph.name} has no '{unknown[0]}'; devices are device:0, device:1, ..., hosts host:0, ..."
        )
    same_node = graph.nodes[source]["node"] == graph.nodes[target]["node"]
    closed = {"host", "network"} if same_node else {"host"}
    hidden = [name for name, kind in graph.nodes(data="kind") if kind in closed and name not in (source, target)]
    path = nx.shortest_path(nx.restricted_view(graph, hidden, []), source, target)
    return [Hop(source=start, target=end, **_link_numbers(graph.edges[start, end])) for start, end in pairwise(path)]


def _measured(device: Device) -> Device:
    """The device with what the tables of its kernel cards hold."""
    if not device.kernels.tables():
        return device
    from hwmodels.measured_rows import measure

    return measure(device)


def _sustained(card: DeviceCard, frac: float | None) -> DeviceCard:
    """The device with a share of its peaks, which the scenario states; memory and links are as fast as ever."""
    if frac is None:
        return card
    origin = {"source": f"scenario: {frac:.3g} of the card's", "kind": "assumed"}
    peaks = card.peak_flop_per_s.items()
    lower = {dtype: peak.model_copy(update={"value": peak.value * frac, **origin}) for dtype, peak in peaks}
    return card.model_copy(update={"peak_flop_per_s": lower})


def _cluster_name(spec: ClusterSpec, node: NodeCard) -> str:
    device = f" with {spec.device}" if spec.device else ""
    return f"{spec.nodes} x {node.name}{device}"


def _host_of(spec: ClusterSpec, node: NodeCard, cards: CardSet) -> tuple[HostCard | None, LinkCard | None]:
    """The host and the link to it; both numbers of a scenario's own are those of a copy."""
    if node.host_link is None or (name := spec.host or node.host) is None:
        stated = [key for key in HOST_NUMBERS if getattr(spec, key) is not None]
        if stated:
            raise HardwareError(f"{node.name} has no host_link, so {stated[0]} has no meaning; use another node card")
        return None, None
    link = _stated(find_link(node.host_link, cards), spec.host_bandwidth, None)
    if spec.host_message is not None:
        link = link.model_copy(update={"latency_s": link.latency_s.model_copy(update=_said(spec.host_message))})
    host = find_host(name, cards)
    if spec.host_memory_bandwidth is not None:
        dram = host.dram_bytes_per_s.model_copy(update=_said(spec.host_memory_bandwidth))
        host = host.model_copy(update={"dram_bytes_per_s": dram})
    return host, link


def _said(value: float) -> dict[str, Any]:
    return {"value": value, "source": "scenario", "kind": "assumed"}


def _stated(link: LinkCard, bytes_per_s: float | None, message_s: float | None) -> LinkCard:
    """The link with another nominal bandwidth, or time of a message, which the scenario states."""
    changes: dict[str, Any] = {}
    if bytes_per_s is not None:
        changes["bytes_per_s"] = link.bytes_per_s.model_copy(update=_said(bytes_per_s))
    if message_s is not None:
        changes["message_s"] = link.latency_s.model_copy(update=_said(message_s))
    return link.model_copy(update=changes)


def _add_link(graph: nx.Graph, start: str, end: str, link: LinkCard | None) -> None:
    if link is None:
        raise HardwareError(f"no link card between {start} and {end}")
    graph.add_edge(start, end, link=link.name, bytes_per_s=link.effective_bytes_per_s, latency_s=link.latency_s.value)


def _link_numbers(edge: dict[str, Any]) -> dict[str, Any]:
    return {name: edge[name] for name in ("link", "bytes_per_s", "latency_s")}
