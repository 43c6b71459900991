import dataclasses
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from hwmodels.cluster import Hop, build_cluster, build_graph, route
from hwmodels.library import list_cards
from scenarios.cluster_specs import ClusterSpec
from scenarios.errors import HardwareError


def spec(**keys: object) -> ClusterSpec:
    return ClusterSpec.model_validate(keys)


def names(hops: list[Hop]) -> list[str]:
    return [hops[0].source, *(hop.target for hop in hops)]


@pytest.mark.parametrize("node", [card.name for card in list_cards().nodes])
def test_every_node_card_makes_a_cluster(node: str) -> None:
    cluster = build_cluster(spec(node=node))
    assert cluster.n_devices == cluster.devices_per_node > 0
    assert cluster.device.memory_bytes_per_s > 0


def test_parts_come_from_the_node_card() -> None:
    cluster = build_cluster(spec(node="h200-sxm-8", nodes=2))
    assert cluster.name == "2 x h200-sxm-8"
    assert (cluster.n_nodes, cluster.devices_per_node, cluster.n_devices) == (2, 8, 16)
    assert cluster.device.card.name == "h200-sxm"
    chain = ["h200-vllm", "h200-vllm-launch", "h200-trtllm", "datasheet-only"]
    assert [card.name for card in cluster.device.kernels.cards] == chain
    assert cluster.inter is not None and cluster.host is not None and cluster.host_link is not None
    assert (cluster.intra.name, cluster.inter.name) == ("nvlink-4", "ndr-ib")
    assert (cluster.host.name, cluster.host_link.name) == ("xeon-8480c-2s", "pcie-5")


def test_devices_are_numbered_node_by_node() -> None:
    nodes = build_cluster(spec(node="a100-80-4", nodes=3)).node_of_device()
    assert nodes.dtype == np.int64
    assert nodes.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_kernel_constants_of_a_scenario_replace_those_of_the_device(tmp_path: Path) -> None:
    assert build_cluster(spec(node="h200-sxm-8", kernels="h200-trtllm")).device.kernels.name == "h200-trtllm"
    (tmp_path / "own.yaml").write_text("kernels: [{name: own, base: ideal}]")
    own = build_cluster(spec(node="h200-sxm-8", kernels="own.yaml"), tmp_path).device.kernels
    assert [card.name for card in own.cards] == ["own", "ideal"]
    with pytest.raises(HardwareError, match=r"no kernel card 'h200-tensorrt'"):
        build_cluster(spec(node="h200-sxm-8", kernels="h200-tensorrt"))


def test_scenario_numbers_override_the_cards() -> None:
    cluster = build_cluster(
        spec(
            node="h200-sxm-8",
            nodes=2,
            device="logic-pim",
            devices_per_node=4,
            intra_bandwidth="100 GB/s",
            inter_bandwidth="80 Gb/s",
        )
    )
    assert cluster.name == "2 x h200-sxm-8 with logic-pim"
    assert cluster.n_devices == 8
    assert cluster.device.card.name == "logic-pim"
    assert cluster.device.kernels.name == "ideal"  # those of the PIM cards
    assert cluster.inter is not None
    assert cluster.intra.effective_bytes_per_s == pytest.approx(100e9 * 0.622)
    assert cluster.inter.effective_bytes_per_s == pytest.approx(10e9 * 0.82)
    assert (cluster.intra.bytes_per_s.kind, cluster.intra.bytes_per_s.source) == ("assumed", "scenario")
    assert cluster.intra.efficiency.kind == "measured"
    assert build_cluster(spec(node="h200-sxm-8")).intra.bytes_per_s.value == 450e9  # the card itself is untouched


def test_several_nodes_need_a_network() -> None:
    with pytest.raises(HardwareError, match=r"2 x rtx-4090-8: 2 nodes need an inter_link.*set nodes: 1"):
        build_cluster(spec(node="rtx-4090-8", nodes=2))
    with pytest.raises(HardwareError, match=r"rtx-4090-8 has no inter_link, so inter_bandwidth"):
        build_cluster(spec(node="rtx-4090-8", inter_bandwidth="10 GB/s"))


def test_inconsistent_clusters_cannot_be_made() -> None:
    cluster = build_cluster(spec(node="h200-sxm-8"))
    with pytest.raises(HardwareError, match="0 nodes of 8 devices"):
        dataclasses.replace(cluster, n_nodes=0)
    with pytest.raises(HardwareError, match="give both or neither"):
        dataclasses.replace(cluster, host_link=None)


def test_unknown_cards_are_errors() -> None:
    with pytest.raises(HardwareError, match="did you mean h200-sxm-8"):
        build_cluster(spec(node="h200"))
    with pytest.raises(HardwareError, match=r"no device card 'b2000' \(did you mean 'b200'"):
        build_cluster(spec(node="h200-sxm-8", device="b2000"))


def test_graph_of_two_nodes_with_hosts() -> None:
    graph = build_graph(build_cluster(spec(node="a100-80-4", nodes=2)))
    assert isinstance(graph, nx.Graph)
    kinds = [kind for _, kind in graph.nodes(data="kind")]
    assert {kind: kinds.count(kind) for kind in kinds} == {"switch": 2, "host": 2, "network": 1, "device": 8}
    assert graph.number_of_edges() == 8 * 3  # switch, network and host of each device
    edge = graph.edges["device:5", "switch:1"]
    assert edge == {
        "link": "nvlink-3",
        "bytes_per_s": pytest.approx(300e9 * 0.573),
        "latency_s": pytest.approx(14.8e-6),
    }
    assert not graph.has_edge("device:5", "switch:0")


def test_one_node_has_no_network() -> None:
    graph = build_graph(build_cluster(spec(node="h800-8")))
    assert sorted(graph.nodes) == [*(f"device:{device}" for device in range(8)), "switch:0"]


def test_route_inside_a_node_passes_its_switch() -> None:
    graph = build_graph(build_cluster(spec(node="h200-sxm-8", nodes=2)))
    hops = route(graph, "device:9", "device:15")
    assert names(hops) == ["device:9", "switch:1", "device:15"]
    assert hops[0].link == "nvlink-4"
    assert hops[0].bytes_per_s == pytest.approx(450e9 * 0.622)
    assert hops[0].latency_s == pytest.approx(10e-6)


def test_route_between_nodes_passes_the_network() -> None:
    graph = build_graph(build_cluster(spec(node="h200-sxm-8", nodes=2)))
    hops = route(graph, "device:0", "device:8")
    assert names(hops) == ["device:0", "network", "device:8"]
    assert {hop.link for hop in hops} == {"ndr-ib"}


def test_routes_of_hosts() -> None:
    graph = build_graph(build_cluster(spec(node="h200-sxm-8", nodes=2)))
    assert [hop.link for hop in route(graph, "host:1", "device:8")] == ["pcie-5"]
    assert [hop.link for hop in route(graph, "host:0", "device:8")] == ["pcie-5", "ndr-ib", "ndr-ib"]
    assert [hop.link for hop in route(graph, "host:0", "host:1")] == ["pcie-5", "ndr-ib", "ndr-ib", "pcie-5"]
    assert route(graph, "device:3", "device:3") == []


def test_route_to_an_unknown_device_is_an_error() -> None:
    graph = build_graph(build_cluster(spec(node="h200-sxm-8")))
    with pytest.raises(HardwareError, match="1 x h200-sxm-8 has no 'device:8'"):
        route(graph, "device:0", "device:8")
