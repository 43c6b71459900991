"""Tokens at the ports, from pairs of devices, by hand."""

import numpy as np
import pytest

from placement.layout import ExpertLayout
from placement.traffic import PortTokens, direct_ports, forwarded_ports

TWO_NODES = ExpertLayout(n_devices=4, devices_per_node=2)


def as_lists(ports: PortTokens) -> tuple[list[int], ...]:
    return tuple(getattr(ports, name).tolist() for name in PortTokens.__slots__)


def test_direct_pairs_inside_and_between_nodes() -> None:
    pairs = np.array([[100, 1, 2, 3], [4, 100, 5, 6], [7, 8, 100, 9], [10, 11, 12, 100]])
    ports = direct_ports(pairs, TWO_NODES)
    assert ports.send_intra.tolist() == [1, 4, 9, 12]
    assert ports.receive_intra.tolist() == [4, 1, 12, 9]
    assert ports.send_inter.tolist() == [2 + 3, 5 + 6, 7 + 8, 10 + 11]
    assert ports.receive_inter.tolist() == [7 + 10, 8 + 11, 2 + 5, 3 + 6]


def test_forwarding_crosses_once_and_goes_on_inside() -> None:
    # device 1 sends 5 tokens to node 1: 4 of them to device 2, 3 to device 3 (so 2 to both); device 3 has its number
    pairs, node_pairs = np.zeros((4, 4), np.int64), np.zeros((4, 2), np.int64)
    pairs[1] = [6, 0, 4, 3]
    node_pairs[1] = [6, 5]
    ports = forwarded_ports(pairs, node_pairs, TWO_NODES)
    assert ports.send_inter.tolist() == [0, 5, 0, 0]
    assert ports.receive_inter.tolist() == [0, 0, 0, 5]
    assert ports.send_intra.tolist() == [0, 6, 0, 4]  # at home straight to device 0, and device 3 passes on to 2
    assert ports.receive_intra.tolist() == [6, 0, 4, 0]


def test_one_node_has_nothing_between_nodes() -> None:
    layout = ExpertLayout(n_devices=3, devices_per_node=3)
    ports = direct_ports(np.arange(9).reshape(3, 3), layout)
    assert as_lists(ports) == ([3, 8, 13], [9, 8, 7], [0, 0, 0], [0, 0, 0])


def test_leading_axes_are_independent() -> None:
    pairs = np.random.default_rng(0).integers(0, 9, (2, 3, 4, 4))
    node_pairs = np.random.default_rng(1).integers(0, 9, (2, 3, 4, 2))
    straight, passed_on = direct_ports(pairs, TWO_NODES), forwarded_ports(pairs, node_pairs, TWO_NODES)
    for cell in np.ndindex(2, 3):
        alone = direct_ports(pairs[cell], TWO_NODES), forwarded_ports(pairs[cell], node_pairs[cell], TWO_NODES)
        for name in PortTokens.__slots__:
            assert getattr(straight, name)[cell].tolist() == getattr(alone[0], name).tolist()
            assert getattr(passed_on, name)[cell].tolist() == getattr(alone[1], name).tolist()


def test_the_way_back_of_direct_tokens_is_the_transpose() -> None:
    pairs = np.random.default_rng(2).integers(0, 99, (4, 4))
    assert as_lists(direct_ports(pairs, TWO_NODES).reversed()) == as_lists(direct_ports(pairs.T, TWO_NODES))


@pytest.mark.parametrize("layout", [TWO_NODES, ExpertLayout(n_devices=6, devices_per_node=2)])
def test_what_is_sent_is_received(layout: ExpertLayout) -> None:
    rng = np.random.default_rng(3)
    pairs = rng.integers(0, 99, (layout.n_devices, layout.n_devices))
    node_pairs = rng.integers(0, 99, (layout.n_devices, layout.n_nodes))
    for ports in (direct_ports(pairs, layout), forwarded_ports(pairs, node_pairs, layout)):
        assert ports.send_intra.sum() == ports.receive_intra.sum() > 0
        assert ports.send_inter.sum() == ports.receive_inter.sum() > 0
        assert as_lists(ports.reversed().reversed()) == as_lists(ports)
